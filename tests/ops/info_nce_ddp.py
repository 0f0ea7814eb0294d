"""Two processes enqueue their keys, gathered. Arguments: the rank, the meeting file, where to leave the queue."""

import sys
from datetime import timedelta

import torch

from deocc.ops import KeyQueue

if __name__ == "__main__":
    rank, meeting, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    torch.manual_seed(rank)
    queue = KeyQueue(7, 3)
    states = []
    for mine, theirs in ((2, 2), (1, 3), (0, 2), (5, 6)):
        count = theirs if rank else mine
        keys = torch.full((count, 3), float(rank)) + torch.arange(3 * count).view(count, 3)
        queue.enqueue(keys, gather=True)
        states.append({name: value.clone() for name, value in queue.state_dict().items()})
    queue.enqueue(torch.eye(3), gather=True, group=torch.distributed.group.WORLD)
    torch.save([*states, queue.state_dict()], out)
    torch.distributed.destroy_process_group()
