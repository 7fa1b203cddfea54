"""PID 1 of the engine container: starts, registers, reaps and stops the processes of one engine. ``launch.py`` is the story."""
