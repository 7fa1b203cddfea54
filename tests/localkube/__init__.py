"""A real Kubernetes on one Linux machine, without Docker, a registry or prebuilt binaries.

The one job: start, describe and stop clusters that tests, the demo and benchmarks talk to when no KUBECONFIG is given.
The invariant kept: a stopped cluster leaves no process, mount, interface, cgroup folder or file; only caches stay.
Not done here: nothing knows what Enginehouse is, except `images`, which builds its two images.

Run `python -m localkube --help` with `tests/` on the path; from Python, `from localkube import cluster`.
"""
