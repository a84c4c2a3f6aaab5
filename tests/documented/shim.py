"""Stands for `python`, `chameleon`, `pip`, ... on the PATH of a documented command.

It asks the reader (`reader.py`), which listens at SHIM_SOCKET, what to do with the command. It is started for every one, so it
imports little.
"""

import json
import os
import socket
import sys

with socket.socket(socket.AF_UNIX) as reader:
    reader.connect(os.environ["SHIM_SOCKET"])
    typed = [os.path.basename(sys.argv[0]), *sys.argv[1:]]
    asked = json.dumps({"typed": typed, "folder": os.getcwd()}).encode()
    socket.send_fds(reader, [len(asked).to_bytes(4, "big")], [0, 1, 2])
    reader.sendall(asked)
    answer = json.loads(reader.makefile().readline() or '{"code": 1}')
if "exec" in answer:
    os.environ.update(answer["environment"])
    os.execv(answer["exec"][0], answer["exec"])
sys.exit(answer["code"])
