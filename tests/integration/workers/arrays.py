"""arrays.py PROCESSES MIB: forked at once, each fills an equal random array; answers with digests, writes."""

import ctypes
import hashlib
import json
import os
import random
import sys

from forked import main

PAGE = os.sysconf("SC_PAGE_SIZE")


def serve(mib, number, requests, answers):
    data = bytearray()
    block = random.Random(5)
    data = bytearray(b"".join(block.randbytes(1 << 20) for _ in range(mib)))
    print(os.getpid(), file=answers, flush=True)
    for line in requests:
        request = json.loads(line)
        if request == "digest":
            answer = hashlib.sha256(data).hexdigest()
        elif request == "where":  # the whole pages of the array: address and bytes
            address = ctypes.addressof(ctypes.c_char.from_buffer(data))
            start = -(-address // PAGE) * PAGE
            answer = [start, (address + len(data)) // PAGE * PAGE - start]
        elif request[0] == "write":  # ["write", every]: one byte in each `every` bytes, own to this process
            for at in range(0, len(data), request[1]):
                data[at] = number + 1
            answer = hashlib.sha256(data).hexdigest()
        elif request[0] == "fork":  # digest as a forked child sees it, and after the child has written
            answer = forked(data)
        print(json.dumps(answer), file=answers, flush=True)


def forked(data):
    inlet, outlet = os.pipe()
    if os.fork() == 0:
        first = hashlib.sha256(data).hexdigest()
        data[: 1 << 20] = bytes(1 << 20)
        second = hashlib.sha256(data).hexdigest()
        os.write(outlet, f"{first} {second}".encode())
        os._exit(0)
    os.close(outlet)
    with os.fdopen(inlet) as file:
        child = file.read().split()
    os.wait()
    return [*child, hashlib.sha256(data).hexdigest()]


if __name__ == "__main__":
    main(int(sys.argv[1]), lambda *ends: serve(int(sys.argv[2]), *ends))
