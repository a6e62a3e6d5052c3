"""What mpiexec starts for each rank of warm_ranks.py: it hands its place in MPI's world over, and ends with it.

Imports next to nothing, so that it is there at once: `python -I -S hand_over.py SOCKET STAGE`.
"""

import json
import os
import signal
import socket
import sys

PASSED_ON = ("PMI_", "MPI_", "MPIR_", "HYDI_", "HPCQA_TEST_")


def main() -> None:
    environment = {name: value for name, value in os.environ.items() if name.startswith(PASSED_ON)}
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(sys.argv[1])
        message = json.dumps({"stage": sys.argv[2], "environment": environment}).encode()
        socket.send_fds(connection, [message], [0, 1, 2, int(environment["PMI_FD"])])
        ended = int(connection.recv(16) or -signal.SIGKILL)
    if ended < 0:
        os.kill(os.getpid(), -ended)
    sys.exit(ended)


if __name__ == "__main__":
    main()
