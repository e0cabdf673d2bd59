"""Workers that are forked at once, and asked together over pipes."""

import json
import os
import sys


def main(count, serve):
    """Forks `count` workers; each calls serve(number, requests, answers) and tells its pid first.

    Each line of stdin goes to all of them, and their answers go to stdout as one list.
    """
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
            with os.fdopen(in_read) as requests, os.fdopen(out_write, "w") as answers:
                serve(number, requests, answers)
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
