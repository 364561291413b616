# SPDX-License-Identifier: Apache-2.0
"""A service that runs a shell script for each client, and ends the run of a client who goes away:

python examples/async_service.py PORT
"""

from __future__ import annotations

import asyncio
import sys

from sandboxlib import STDOUT, Sandbox, SandboxError

MOST = 8  # runs at once


# [service]
class Service:
    def __init__(self, box: Sandbox) -> None:
        self.box = box
        self.turns = asyncio.Semaphore(MOST)

    async def run(self, script: bytes) -> bytes:
        async with self.turns:
            result = await self.box.run_async(
                ["sh", "-c", script], stderr=STDOUT, timeout=30, max_output="1M"
            )
        return result.stdout + f"exit {result.exit}\n".encode()

    async def client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        run = asyncio.ensure_future(self.run(await reader.readline()))
        gone = asyncio.ensure_future(reader.read())
        await asyncio.wait({run, gone}, return_when=asyncio.FIRST_COMPLETED)
        try:
            if run.done():
                writer.write(run.result())
                await writer.drain()
            else:
                run.cancel()  # kills every process of the run ...
                await asyncio.wait({run})  # ... and this waits until they are gone
                print("cancelled", flush=True)
        except SandboxError as error:
            writer.write(f"{error}\n".encode())
        finally:
            gone.cancel()
            writer.close()


# [main]
async def main(port: int) -> None:
    with Sandbox("/") as box:
        server = await asyncio.start_server(Service(box).client, "127.0.0.1", port)
        print(server.sockets[0].getsockname()[1], flush=True)
        async with server:
            await server.serve_forever()


# [end]

if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
