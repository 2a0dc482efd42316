"""What tools/gpu_day.py is made of: everything that only a GPU can tell about the package, found in ten minutes.

plan.py        the sections of the day, in order of value, each with its own limit in seconds
day.py         runs them, each in a process of its own; a section that dies loses only itself
findings.py    one JSON line a finding, written at once
judge.py       which findings pass, and by what bound
page.py        the lines as one HTML page
machine.py     a GPU and, for toys, a CPU behind the same few calls: the only file that names torch.cuda
hold.py        a kernel that only holds multiprocessors, as a waiting receive does
meshes.py      the mesh with its messages replaced by local copies, or led through the CPU
processes.py   a function on several ranks
small.py       a small model's losses on any layout
sections/      one file a section
"""

from pathlib import Path

import megatron_lite

ROOT = Path(__file__).resolve().parents[2]

# From a source tree that nobody installed: kernels/ lies beside the package that it belongs to.
if str(ROOT) not in megatron_lite.__path__:
    megatron_lite.__path__.append(str(ROOT))
