"""KITTI: the raw recordings, the odometry benchmark, calibration, laser scans, inertial data."""
