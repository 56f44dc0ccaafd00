"""Train FeatDepth: depth and camera motion from video.

python train.py --config configs/demo.yaml [key=value ...] [--resume] [--cpu]
accelerate launch train.py --config configs/kitti.yaml
"""

from __future__ import annotations

from featdepth.errors import end_at_interrupt, run_program

# Before the imports that take seconds.
if __name__ == "__main__":
    end_at_interrupt()

import argparse
import math
import sys
from datetime import timedelta

import torch
from accelerate.utils import set_seed

from featdepth.config import load_config, parse_arguments, to_dict
from featdepth.console import Display
from featdepth.data import augment, build_dataset, leaked_drives
from featdepth.data.splits import is_transductive
from featdepth.models import FeatDepth, build_model
from featdepth.models.saved.provenance import describe_check
from featdepth.objective import compute_losses
from featdepth.parallel.accelerator import bare_model, begin_pass, compiled, keep_gradients, make_accelerator
from featdepth.parallel.loaders import check_loaders, make_loader
from featdepth.parallel.processes import on_main_process
from featdepth.training.checkpoint import Progress, resume, save_checkpoint
from featdepth.training.conditions import conditions_of, configuration_digest
from featdepth.training.journal import Journal, MetricsFile, flat_config, print_header
from featdepth.training.run_directory import RunDirectory
from featdepth.training.signals import Asked, Requests
from featdepth.training.steps import Steps
from featdepth.training.validation import validate


def main() -> None:
    # Configuration and processes.
    arguments = parse_arguments(None, __doc__, add_options)
    config = load_config(arguments.config, arguments.overrides)
    accelerator = make_accelerator(config, arguments.cpu)
    run = RunDirectory(accelerator, config, arguments.resume or arguments.resume_anyway)

    # Data: the batch size is per process; an epoch leaves out an incomplete last batch, validation leaves out nothing.
    train_data, validation_data = build_dataset(config, "train"), build_dataset(config, "validation")
    for member in train_data.members:
        member.check_baselines()
    contaminated = leaked_drives(config, train_data.recordings())
    pinned = accelerator.device.type == "cuda"
    train_loader = make_loader(train_data, config, shuffle=True, pinned=pinned)
    validation_loader = make_loader(validation_data, config, shuffle=False, pinned=pinned)
    check_loaders(accelerator, config, train_loader, validation_loader)

    # Model and optimizer. One process of each machine goes first, so that weights are downloaded once.
    with accelerator.local_main_process_first():
        learned = config.model.intrinsics == "learned"
        model = build_model(config, train_data.start_intrinsics() if learned else None)
    validation_data.number_cameras(model.camera_names)
    model.provenance.add_data(train_data.recordings(), contaminated, {each.config.kind for each in train_data.members})
    model.provenance.begin_training(to_dict(config), is_transductive(config, train_data.recordings()))
    model = model.to(memory_format=torch.channels_last)
    model.synchronise_batch_norms(accelerator.num_processes)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trainable, config.optimizer.lr, weight_decay=config.optimizer.weight_decay, fused=True)

    # Accelerate. Where the launcher asks for it, it compiles the networks; what surrounds them is compiled here.
    model, optimizer, train_loader, validation_loader = accelerator.prepare(
        model, optimizer, train_loader, validation_loader
    )
    bare = bare_model(accelerator, model)
    keeps_gradients = keep_gradients(accelerator, trainable)
    augment_batch, losses_of = compiled(accelerator, augment), compiled(accelerator, compute_losses)

    # Where the run stands. Dropout differs between processes from here on; all else is drawn per sample.
    set_seed(config.train.seed, device_specific=True)
    progress, checkpoints, resumed = Progress(), run.path / "checkpoints", None
    conditions = conditions_of(accelerator, config, train_data.samples, validation_data.samples, len(train_loader))
    bare.provenance.configuration_digest = configuration_digest(conditions, config)
    if run.resume:
        resumed = resume(accelerator, checkpoints, progress, conditions, arguments.resume_anyway)
        for group in optimizer.param_groups:  # a checkpoint brings its own
            group["weight_decay"] = config.optimizer.weight_decay

    # From here on there is a run: nothing is written before all of the above is known to work.
    run.make()
    accelerator.init_trackers("featdepth", config=flat_config(config))
    steps = Steps(accelerator, bare, optimizer, config, progress, batches=len(train_loader))
    metrics = MetricsFile(run.path / "metrics.jsonl", enabled=accelerator.is_main_process)
    validation_due = steps.are_done or steps.epoch_is_done
    on_main_process(accelerator, lambda: metrics.forget_after(progress.step, validated=not validation_due))
    requests = Requests(accelerator, timedelta(seconds=config.train.timeout))
    print_header(accelerator, config, bare, train_data, validation_data, steps, resumed, contaminated)
    hidden = not accelerator.is_main_process
    display = Display("training", steps.total, "steps", progress.step, first_seconds=0, hidden=hidden)
    journal = Journal(accelerator, metrics, display)

    def save() -> None:
        nonlocal saved
        steps.keep_sums()
        save_checkpoint(accelerator, checkpoints, progress, conditions, config.train.keep_checkpoints)
        saved = progress.step

    def check(checked: FeatDepth, which: str) -> None:
        """At the end of a training: has the model learned anything?"""
        from featdepth.training.learned_check import check_model  # of all runs only those that end need it

        checked.provenance.check = check_model(checked, validation_data, config, accelerator.device)
        if checked.provenance.check is not None:
            journal.say(f"check      {which} model: {describe_check(checked.provenance.check)}")

    def close_epoch(result: dict[str, float]) -> None:
        """Write down a validation: losses and depth scores, pictures, models."""
        is_best = progress.end_validation(result["loss"])
        bare.provenance.add_validation({"epoch": progress.epoch, "step": progress.step, **result})

        def write() -> None:
            from featdepth.training.panels import draw_panel  # one process draws, and what there is to show

            journal.write("validation", progress, result)
            if (warning := bare.camera_warning()) is not None:
                journal.say(f"note: {warning}")
            picture = run.path / f"images/step_{progress.step:07d}.png"
            draw_panel(bare, validation_data, config, accelerator.device, picture)
            run.keep_model(bare, is_best, check if steps.are_done and progress.step > 0 else None)

        on_main_process(accelerator, write)

    model.train()
    asked, saved = Asked(), progress.step
    while not steps.are_done or progress.validated < progress.step:
        # The sampler draws a new order from (seed, epoch), the dataset its augmentation from (seed, epoch, index).
        train_data.set_epoch(progress.epoch)
        train_loader.set_epoch(progress.epoch)
        for batch in steps.left_in_epoch(train_loader):
            begin_pass(accelerator)
            with accelerator.accumulate(model):
                batch = augment_batch(batch)
                prediction = model(batch)
                losses = losses_of(prediction, batch, config)
                accelerator.backward(steps.loss(losses))
                if accelerator.sync_gradients:
                    steps.judge(accelerator.clip_grad_norm_(trainable, config.optimizer.clip_norm or math.inf))
                optimizer.step()
                optimizer.zero_grad(set_to_none=not keeps_gradients)
            bare.follow_cameras(batch, prediction)
            steps.end_batch(batch, losses)
            if not accelerator.sync_gradients:
                continue

            if not display.said_any and accelerator.device.type == "cuda":
                torch.cuda.synchronize()  # once, for an honest time of the first step
            display.update()
            if steps.due(config.train.log_every):
                values = {"lr": steps.rate, **steps.interval.close(), **bare.camera_values()}
                journal.write("train", progress, values, f"  left {steps.time_left(values['images_per_second'])}")
            if steps.due(config.train.max_bad_steps):
                steps.bad_steps.check(accelerator, train_data.samples, run.path)
            asked = requests.agreed()
            if asked.save or progress.step % config.train.checkpoint_every == 0:
                save()
            if asked.stop or steps.are_done:
                break

        # A checkpoint comes before the validation, which a run that was stopped meanwhile does again.
        if saved < progress.step:
            save()
        if asked.stop:
            break
        result = validate(accelerator, model, validation_loader, config, requests.must_stop, losses_of)
        if result is None:
            break
        close_epoch(result)
        if steps.epoch_is_done:
            progress.epoch, progress.batch = progress.epoch + 1, 0

    display.close()
    asked = requests.agreed(at_once=True)
    requests.close()
    is_stopped = not steps.are_done or progress.validated < progress.step
    if is_stopped:
        accelerator.print(f"stopped after step {progress.step} by a signal; the same command with --resume continues")
    # A process group that ends before the model it serves aborts now and then.
    model, optimizer = accelerator.free_memory(model, optimizer)
    accelerator.end_training()
    if is_stopped:
        sys.exit(asked.exit_code)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--resume", action="store_true", help="continue the run in run.directory, or start it")
    parser.add_argument(
        "--resume-anyway", action="store_true", help="--resume, even where the configuration makes it another run"
    )
    parser.add_argument("--cpu", action="store_true", help="use no GPU")


if __name__ == "__main__":
    run_program(main)
