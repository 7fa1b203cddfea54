"""Print the names of all actors and placement groups of a Ray cluster that live, as one line of JSON."""

import json
import sys

import ray
from ray._private import state
from ray.util import placement_group_table

ray.init(address=sys.argv[1], log_to_driver=False, configure_logging=False)
actors = [actor["Name"] for actor in state.actors().values() if actor["State"] != "DEAD"]
groups = [group["name"] for group in placement_group_table().values() if group["state"] != "REMOVED"]
print(json.dumps(actors + groups))
