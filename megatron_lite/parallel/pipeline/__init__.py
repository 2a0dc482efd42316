"""Pipeline parallelism: schedules as data, one checker, one executor, one simulator, one drawing."""
