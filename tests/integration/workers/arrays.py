"""arrays.py PROCESSES MIB: forked at once, each fills an equal random array; answers with digests, writes."""

import ctypes
import hashlib
import json
import os
import random
import sys

PAGE = os.sysconf("SC_PAGE_SIZE")


def serve(number, mib, requests, answers):
    data = bytearray()
    block = random.Random(5)
    data = bytearray(b"".join(block.randbytes(1 << 20) for _ in range(mib)))
    with os.fdopen(requests) as inlet, os.fdopen(answers, "w") as outlet:
        print(os.getpid(), file=outlet, flush=True)
        for line in inlet:
            request = json.loads(line)
            if request == "where":  # the whole pages of the array: address and bytes
                address = ctypes.addressof(ctypes.c_char.from_buffer(data))
                start = -(-address // PAGE) * PAGE
                answer = [start, (address + len(data)) // PAGE * PAGE - start]
            elif request == "digest":
                answer = hashlib.sha256(data).hexdigest()
            elif (
                request[0] == "write"
            ):  # ["write", every]: one byte in each `every` bytes, own to this process
                for at in range(0, len(data), request[1]):
                    data[at] = number + 1
                answer = hashlib.sha256(data).hexdigest()
            elif request[0] == "fork":  # digest as a forked child sees it, and after the child has written
                answer = forked(data)
            print(json.dumps(answer), file=outlet, flush=True)


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
    count, mib = int(sys.argv[1]), int(sys.argv[2])
    ends = []
    for number in range(count):
        in_read, in_write = os.pipe()
        out_read, out_write = os.pipe()
        if os.fork() == 0:
            os.close(in_write)
            for inlet, outlet in ends:
                inlet.close()
                outlet.close()
            sys.stdin.close()
            serve(number, mib, in_read, out_write)
            os._exit(0)
        os.close(in_read)
        os.close(out_write)
        ends.append((os.fdopen(in_write, "w"), os.fdopen(out_read)))
    print(json.dumps({"pids": [int(outlet.readline()) for _, outlet in ends]}), flush=True)
    for line in sys.stdin:
        for inlet, _ in ends:
            inlet.write(line)
            inlet.flush()
        print(json.dumps([json.loads(outlet.readline()) for _, outlet in ends]), flush=True)
