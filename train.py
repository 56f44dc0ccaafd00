"""Train FeatDepth: depth and camera motion from video.

python train.py --config configs/demo.yaml [key=value ...] [--resume] [--cpu]
accelerate launch train.py --config configs/kitti.yaml
"""

from __future__ import annotations

from featdepth.errors import InputError, end_at_interrupt, run_program

# Before the imports that take seconds.
if __name__ == "__main__":
    end_at_interrupt()

import argparse
import math
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
from accelerate.utils import set_seed
from torch.utils.data import DataLoader, default_collate

from featdepth.config import Config, load_config, parse_arguments, to_dict
from featdepth.console import Display
from featdepth.data import augment, build_dataset, leaked_drives
from featdepth.data.baselines import check_baselines
from featdepth.data.notes import describe_intrinsics, shape_note, unused_settings
from featdepth.data.splits import is_transductive
from featdepth.drawing import save_picture
from featdepth.models import FeatDepth, build_model
from featdepth.models.batch_norm import synchronise_batch_norms
from featdepth.models.saved.provenance import versions
from featdepth.models.saved.verdict import describe
from featdepth.objective import compute_losses
from featdepth.parallel.accelerator import (
    bare_model,
    begin_pass,
    compilation,
    compiled,
    device_name,
    make_accelerator,
    precision,
    records_graphs,
)
from featdepth.parallel.loaders import check_shared_memory, keep_loading_at_signals, sample_bytes
from featdepth.parallel.processes import on_all_processes, on_main_process
from featdepth.scale import describe_scale
from featdepth.training.bad_steps import BadSteps
from featdepth.training.checkpoint import Progress, resume, save_checkpoint
from featdepth.training.conditions import circumstances, configuration_digest
from featdepth.training.journal import IntervalLog, MetricsFile, log_line
from featdepth.training.learned_check import check_model
from featdepth.training.panels import panel
from featdepth.training.run_directory import RunDirectory
from featdepth.training.schedule import fitted, learning_rate, notes, window_size
from featdepth.training.signals import EXIT_CODES, NOTHING, SAVE, Requests
from featdepth.training.validation import validate
from featdepth.wording import count


def main() -> None:
    # Configuration and processes.
    arguments = parse_arguments(None, __doc__, add_options)
    config = load_config(arguments.config, arguments.overrides)
    accelerator = make_accelerator(config, arguments.cpu)
    run = RunDirectory(accelerator, config, arguments.resume or arguments.resume_anyway)
    directory = run.path

    # Data: the batch size is per process; an epoch leaves out an incomplete last batch, validation leaves out nothing.
    train_data = build_dataset(config, "train")
    validation_data = build_dataset(config, "validation")
    for member in train_data.members:
        check_baselines(member.config.root, member.stereo_poses)
    contaminated = leaked_drives(config, train_data.recordings())
    pinned = accelerator.device.type == "cuda"
    train_loader = make_loader(train_data, config, shuffle=True, pinned=pinned)
    validation_loader = make_loader(validation_data, config, shuffle=False, pinned=pinned)
    left = 0  # bytes of a batch of the training, whose loader processes keep theirs where it stops within an epoch
    for part, loader in (("training", train_loader), ("validation", validation_loader)):
        batch_bytes = config.train.batch_size * sample_bytes(loader.dataset)
        check_shared_memory(accelerator, part, batch_bytes, len(loader), config.data.workers, beside=left)
        left = batch_bytes if config.train.max_steps else 0

    # Networks and optimizer. One process of each machine goes first, so that weights are downloaded once.
    with accelerator.local_main_process_first():
        learned = config.model.intrinsics == "learned"
        model = build_model(config, train_data.start_intrinsics() if learned else None)
    if learned:
        validation_data.number_cameras(model.cameras.names)
    model.record_training(train_data.recordings(), contaminated, versions())
    kinds = {member.config.kind for member in train_data.members}
    model.record_configuration(to_dict(config), kinds, is_transductive(config, train_data.recordings()))
    model = model.to(memory_format=torch.channels_last)
    if config.train.sync_batch_norm and accelerator.num_processes > 1:
        synchronise_batch_norms(model, accelerator.num_processes)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(
        trainable, lr=config.optimizer.lr, weight_decay=config.optimizer.weight_decay, fused=True
    )
    model, optimizer, train_loader, validation_loader = accelerator.prepare(
        model, optimizer, train_loader, validation_loader
    )
    bare = bare_model(accelerator, model)
    # A recorded backward pass overwrites its gradients in the next pass: they are added to memory that stays.
    keeps_gradients = records_graphs(accelerator)
    for parameter in trainable if keeps_gradients else ():
        parameter.grad = torch.zeros_like(parameter)
    # Where the launcher asks for it Accelerate has compiled the networks; what surrounds them is compiled here.
    augment_batch, losses_of = compiled(accelerator, augment), compiled(accelerator, compute_losses)
    if len(train_loader) == 0:
        raise InputError(
            f"train.batch_size {config.train.batch_size} x {count(accelerator.num_processes, 'process', 'processes')} "
            f"is more than the {count(len(train_data), 'training sample')}; lower it"
        )

    # Where the run stands. Dropout differs between processes from here on; all else is drawn per sample.
    set_seed(config.train.seed, device_specific=True)
    progress, checkpoints, resumed = Progress(), directory / "checkpoints", None
    conditions = circumstances(accelerator, config, train_data.samples, validation_data.samples)
    accumulate = config.train.accumulate
    steps_per_epoch = math.ceil(len(train_loader) / accumulate)
    schedule = fitted(config.schedule, config.train.epochs, steps_per_epoch)
    conditions["warm-up"] = schedule.warmup_steps
    bare.training_record["configuration_digest"] = configuration_digest(conditions, config)
    if run.resume:
        resumed = resume(accelerator, checkpoints, progress, conditions, arguments.resume_anyway)
        for group in optimizer.param_groups:  # a checkpoint brings its own
            group["weight_decay"] = config.optimizer.weight_decay

    steps_done = math.ceil(progress.batch / accumulate)  # of the epoch in progress
    total_steps = progress.step + (config.train.epochs - progress.epoch) * steps_per_epoch - steps_done
    if config.train.max_steps is not None:
        total_steps = min(total_steps, config.train.max_steps)

    # From here on there is a run: nothing is written before all of the above is known to work.
    run.make()
    metrics = MetricsFile(directory / "metrics.jsonl", enabled=accelerator.is_main_process)
    validation_due = progress.step >= total_steps or progress.batch >= len(train_loader)
    on_all_processes(accelerator, lambda: metrics.forget_after(progress.step, validated=not validation_due))
    if config.run.trackers:
        accelerator.init_trackers("featdepth", config=flat_config(config))
    interval = IntervalLog(accelerator)
    interval.restore(progress.interval)
    bad_steps = BadSteps(
        bare, optimizer.optimizer, config.train.max_bad_steps, progress.bad_in_a_row, accelerator.scaler
    )
    requests = Requests(accelerator, timedelta(seconds=config.train.timeout))

    batch_size = config.train.batch_size * accelerator.num_processes
    last_window = window_size(len(train_loader) - 1, len(train_loader), accumulate)
    an_epoch = f"{steps_per_epoch} an epoch"
    if last_window < accumulate:
        an_epoch += f", the last of {last_window * batch_size}"
    accelerator.print(
        f"run        {directory}{f', continued from {resumed}' if resumed else ''}\n"
        f"devices    {accelerator.num_processes} x {device_name(accelerator)}, "
        f"precision {precision(accelerator)}, compilation {compilation(accelerator)}\n"
        f"objective  {config.model.objective}, {sum(map(torch.numel, trainable)):,} parameters to learn\n"
        f"depth      {describe_scale(bare.scale_source) if bare.has_depth else 'none'}\n"
        f"intrinsics {describe_intrinsics(train_data.members, learned)}\n"
        f"training   {train_data.describe()}\n"
        f"validation {validation_data.describe()}\n"
        f"schedule   {count(total_steps, 'step')} of {count(batch_size * accumulate, 'sample')}, {an_epoch}"
    )
    if (note := shape_note(train_data, (config.data.height, config.data.width))) is not None:
        accelerator.print(f"note       {note}")
    too_short = notes(config.schedule, config.train.epochs, steps_per_epoch, config.train.max_steps)
    for note in unused_settings(train_data.members) + too_short:
        accelerator.print(f"note       {note}")
    if contaminated:
        accelerator.print(f"CONTAMINATED: trained on drives of another part of the split: {', '.join(contaminated)}")

    def save() -> None:
        progress.interval, progress.bad_in_a_row = interval.state(), int(bad_steps.in_a_row)
        save_checkpoint(accelerator, checkpoints, progress, conditions, config.train.keep_checkpoints)

    def check(checked: FeatDepth) -> None:
        """At the end of a training: has the model learned anything?"""
        found = check_model(checked, validation_data, config, accelerator.device)
        checked.record_check(found)
        if found is not None:
            which = "last" if checked is bare else "best"
            bar.write(f"check      {which} model: {describe(found)}")

    def close_epoch(result: dict[str, float]) -> None:
        """Write down a validation: losses and depth scores, pictures, models."""
        is_best = result["loss"] < (math.inf if progress.best_loss is None else progress.best_loss)
        progress.validated, progress.best_loss = progress.step, result["loss"] if is_best else progress.best_loss
        line = {"split": "validation", "epoch": progress.epoch, "step": progress.step, **result}
        bare.record_validation({"epoch": progress.epoch, "step": progress.step, **result})
        accelerator.log({f"validation/{key}": value for key, value in result.items()}, step=progress.step)

        def write() -> None:
            bar.write(log_line(line))
            if bare.cameras is not None and (warning := bare.cameras.warning((bare.height, bare.width))):
                bar.write(f"note: {warning}")
            metrics.write(line)
            if 0 < progress.step >= total_steps:
                check(bare)
            path = directory / f"images/step_{progress.step:07d}.png"
            draw_panel(bare, validation_data, config, accelerator.device, path)
            bare.save_pretrained(directory / "model_last")
            if is_best:
                bare.save_pretrained(directory / "model")
            elif 0 < progress.step >= total_steps and (directory / "model").is_dir():
                best = FeatDepth.from_pretrained(directory / "model").to(accelerator.device)
                check(best)
                best.save_pretrained(directory / "model")

        on_main_process(accelerator, write)

    is_main = accelerator.is_main_process
    bar = Display("training", total_steps, "steps", progress.step, first_seconds=0, hidden=not is_main)
    model.train()
    asked_for, saved = NOTHING, progress.step
    while progress.step < total_steps or progress.validated < progress.step:
        # The sampler draws a new order from (seed, epoch), the dataset its augmentation from (seed, epoch, index).
        train_data.set_epoch(progress.epoch)
        train_loader.set_epoch(progress.epoch)
        batches = accelerator.skip_first_batches(train_loader, progress.batch) if progress.batch else train_loader
        if progress.step >= total_steps or progress.batch >= len(train_loader):
            batches = ()  # continued between the last step and its validation
        asked = time.perf_counter()
        for batch in batches:
            waited = time.perf_counter() - asked
            begin_pass(accelerator)
            with accelerator.accumulate(model):
                batch = augment_batch(batch)
                prediction = model(batch)
                losses = losses_of(prediction, batch, config)
                loss = torch.stack(list(losses.values())).sum(0).mean()
                # Accelerate divides by `accumulate`; the last step of an epoch may have fewer batches.
                window = window_size(progress.batch, len(train_loader), accumulate)
                accelerator.backward(bad_steps.watch(loss) * (accumulate / window))
                if accelerator.sync_gradients:
                    norm = accelerator.clip_grad_norm_(trainable, config.optimizer.clip_norm or math.inf)
                    bad = bad_steps.judge(norm)
                rate = learning_rate(progress.step, progress.epoch, config.optimizer.lr, schedule)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                optimizer.step()
                optimizer.zero_grad(set_to_none=not keeps_gradients)
            bare.follow_cameras(batch, prediction)
            interval.add(losses, batch["replaced"], waited)
            bad_steps.samples.append(batch["index"])
            progress.batch += 1
            asked = time.perf_counter()
            if not accelerator.sync_gradients:
                continue

            progress.step += 1
            if not bar.said_any and accelerator.device.type == "cuda":
                torch.cuda.synchronize()  # once, for an honest time of the first step
            bar.update()
            bad_steps.settle(progress.step, bad)
            interval.settle(bad)
            if progress.step % config.train.log_every == 0 or progress.step == total_steps:
                values = interval.close()
                if bare.cameras is not None:
                    values |= bare.cameras.log()
                if accelerator.scaler is not None:
                    values["loss_scale"] = accelerator.scaler.get_scale()
                line = {"split": "train", "epoch": progress.epoch, "step": progress.step, "lr": rate, **values}
                metrics.write(line)
                accelerator.log({f"train/{key}": value for key, value in {"lr": rate, **values}.items()}, progress.step)
                if is_main:
                    samples_left = (total_steps - progress.step) * batch_size * len(train_loader) / steps_per_epoch
                    time_left = samples_left / values["images_per_second"]
                    bar.write(f"{log_line(line)}  left {timedelta(seconds=round(time_left))}")
            if progress.step % config.train.max_bad_steps == 0 or progress.step == total_steps:
                bad_steps.check(accelerator, train_data.samples, directory)
            asked_for = requests.agreed()
            if asked_for or progress.step % config.train.checkpoint_every == 0:
                save()
                saved = progress.step
            if asked_for > SAVE or progress.step == total_steps:
                break

        # A checkpoint comes before the validation, which a run that was stopped meanwhile does again.
        if saved < progress.step:
            save()
            saved = progress.step
        if asked_for > SAVE:
            break
        result = validate(
            accelerator,
            model,
            validation_loader,
            config,
            with_depth=scores_depth(validation_data, config),
            interrupted=lambda: requests.agreed(at_once=True) > SAVE,
            losses_of=losses_of,
        )
        if result is None:
            break
        close_epoch(result)
        if progress.batch >= len(train_loader):
            progress.epoch, progress.batch = progress.epoch + 1, 0

    bar.close()
    asked_for = requests.agreed(at_once=True)
    requests.close()
    stopped = progress.step < total_steps or progress.validated < progress.step
    if stopped:
        accelerator.print(f"stopped after step {progress.step} by a signal; the same command with --resume continues")
    # A process group that ends before the model it serves aborts now and then.
    model, optimizer = accelerator.free_memory(model, optimizer)
    accelerator.end_training()
    if stopped:
        sys.exit(EXIT_CODES[asked_for])


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--resume", action="store_true", help="continue the run in run.directory, or start it")
    parser.add_argument(
        "--resume-anyway", action="store_true", help="--resume, even where the configuration makes it another run"
    )
    parser.add_argument("--cpu", action="store_true", help="use no GPU")


def make_loader(dataset, config: Config, shuffle: bool, pinned: bool = False) -> DataLoader:
    """Batches of `train.batch_size`; training shuffles and drops an incomplete last batch.

    pinned: in memory from which a GPU copies while the host goes on.
    """
    return DataLoader(
        dataset,
        batch_size=config.train.batch_size,
        shuffle=shuffle,
        drop_last=shuffle,
        num_workers=config.data.workers,
        persistent_workers=config.data.workers > 0,
        pin_memory=pinned,
        worker_init_fn=keep_loading_at_signals,
        # An iterator draws a seed when it is made; from the global state that would shift dropout after a resume.
        generator=torch.Generator().manual_seed(config.train.seed),
    )


def scores_depth(dataset, config: Config) -> bool:
    return dataset.with_depth and config.model.objective != "autoencoder"


@torch.no_grad()
def draw_panel(model: FeatDepth, dataset, config: Config, device: torch.device, path: Path) -> None:
    """A picture of `train.panel_samples` samples, evenly spaced over `dataset`."""
    count = min(config.train.panel_samples, len(dataset))
    if count == 0:
        return
    samples = [dataset[index * len(dataset) // count] for index in range(count)]
    batch = augment({key: value.to(device) for key, value in default_collate(samples).items()})
    model.eval()
    save_picture(panel(model(batch), batch, config), path)
    model.train()


def flat_config(config: Config) -> dict[str, object]:
    """`section.key` -> text or number, as trackers take it."""
    sections = to_dict(config).items()
    flat = {f"{section}.{key}": value for section, values in sections for key, value in values.items()}
    return {key: value if isinstance(value, int | float | str) else str(value) for key, value in flat.items()}


if __name__ == "__main__":
    run_program(main)
