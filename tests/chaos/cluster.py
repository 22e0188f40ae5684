"""A Kafka of one node or three, each behind a proxy: clients only ever see the proxies."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Self

from deploy.kafka.local_kafka import LocalKafka
from deploy.run_procfile import free_ports
from tests.chaos.proxy import Proxy


class Cluster:
    """Brokers that can be killed and restarted, and proxies that can lose their answers."""

    def __init__(self, nodes: int) -> None:
        ports = free_ports(nodes * 4)
        proxied, inner, controllers, clients = (ports[at * nodes : (at + 1) * nodes] for at in range(4))
        voters = ",".join(f"{number}@127.0.0.1:{port}" for number, port in enumerate(controllers, 1))
        replicas = str(nodes)
        self.nodes = [
            LocalKafka(
                port=clients[index],
                properties={
                    "node.id": str(index + 1),
                    "controller.quorum.voters": voters,
                    "listeners": f"PLAINTEXT://127.0.0.1:{clients[index]},INNER://127.0.0.1:{inner[index]},"
                    f"CONTROLLER://127.0.0.1:{controllers[index]}",
                    "advertised.listeners": f"PLAINTEXT://127.0.0.1:{proxied[index]},INNER://127.0.0.1:{inner[index]}",
                    "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,INNER:PLAINTEXT,CONTROLLER:PLAINTEXT",
                    "inter.broker.listener.name": "INNER",
                    "default.replication.factor": replicas,
                    "offsets.topic.replication.factor": replicas,
                    "transaction.state.log.replication.factor": replicas,
                    "share.coordinator.state.topic.replication.factor": replicas,
                    "min.insync.replicas": "2" if nodes > 1 else "1",
                },
            )
            for index in range(nodes)
        ]
        self.proxies = [Proxy(proxied[index], clients[index]) for index in range(nodes)]
        self.address = ",".join(f"127.0.0.1:{port}" for port in proxied)

    async def __aenter__(self) -> Self:
        with ThreadPoolExecutor(len(self.nodes)) as pool:  # no node of three is up before a second one is
            await asyncio.gather(*(asyncio.get_running_loop().run_in_executor(pool, node.start) for node in self.nodes))
        for proxy in self.proxies:
            await proxy.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        for proxy in self.proxies:
            await proxy.close()
        for node in self.nodes:
            await asyncio.to_thread(node.kill)
            await asyncio.to_thread(node.stop)
