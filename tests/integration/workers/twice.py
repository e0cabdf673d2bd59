"""twice.py MIB: one process with the same data twice, and as many zeros."""

import json
import os
import random
import sys

if __name__ == "__main__":
    mib = int(sys.argv[1])
    first = bytearray(b"".join(map(random.Random(9).randbytes, [1 << 20] * mib)))
    second = bytearray(first)
    zeros = bytearray(b"x") * (mib << 20)
    zeros[:] = bytes(mib << 20)
    print(json.dumps({"pids": [os.getpid()]}), flush=True)
    for _ in sys.stdin:
        print(json.dumps(first == second and not any(zeros)), flush=True)
