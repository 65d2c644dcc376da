"""Where the router's configuration is written down, and taking over what was changed there while it runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Iterator, Sequence
from time import time

from prometheus_client.core import GaugeMetricFamily, Metric
from quintet_common.changes import settled, stamp
from quintet_common.models_yml import Config, ConfigError, UpstreamSpec, load_config, load_upstreams

from quintet_router.access.keyring import Keyring
from quintet_router.fleet import Fleet

log = logging.getLogger("quintet.router")


class Sources:
    """``urls`` come from the command line, ``config`` is models.yml's path and ``listed`` that of a list of upstreams.

    ``watched``: whether models.yml, too, is read again as soon as it has changed. ``kinds``: of its models, those of
    these kinds are served; None for all.
    """

    def __init__(
        self,
        urls: Sequence[str],
        config: str | None,
        listed: str | None,
        watched: bool = False,
        kinds: Collection[str] | None = None,
    ) -> None:
        self._urls = urls
        self._config = config
        self._listed = listed
        self._kinds = kinds
        self.watched = [path for path in (listed, config if watched else None) if path]
        self.first = self.signature()
        """Of the files before they were read for the first time."""

    def read_config(self) -> Config:
        """models.yml, or an empty one where there is none. Raises ConfigError."""
        return load_config(self._config) if self._config else Config()

    def read_upstreams(self, config: Config) -> list[UpstreamSpec]:
        """Those of the command line, of models.yml and of the list. Raises ConfigError when there is none."""
        listed = load_upstreams(self._listed) if self._listed else []
        specs = [*(UpstreamSpec(url=url) for url in self._urls), *config.upstreams, *listed]
        if not specs and not self._listed:
            raise ConfigError("No upstream: give --upstream URL, or upstreams: in the file of --config.")
        urls = [spec.http_url for spec in specs]
        if twice := next((url for url in urls if urls.count(url) > 1), None):
            raise ConfigError(f"The upstream {twice} is given twice.")
        return specs

    def promised_by(self, config: Config) -> tuple[frozenset[str], dict[str, str]]:
        """Every name that models.yml says will be served; and those that are left out, with their kinds."""
        kinds: dict[str, str] = {name: spec.kind for spec in config.models for name in spec.names}
        left_out = {name: kind for name, kind in kinds.items() if self._kinds is not None and kind not in self._kinds}
        return frozenset(kinds.keys() - left_out.keys()), left_out

    def signature(self) -> tuple[object, ...]:
        """Another one after a watched file was changed, replaced, made or removed."""
        return tuple(stamp(path) for path in self.watched)


class Reloads:
    """Reads the sources again. What is wrong changes nothing but ``successful``; what is right is swapped whole.

    ``seconds`` are between two looks at a watched file. ``keyring`` follows its file itself; the metrics tell of both.
    """

    def __init__(self, sources: Sources, fleet: Fleet, seconds: float, keyring: Keyring | None = None) -> None:
        self._sources = sources
        self._fleet = fleet
        self._seconds = seconds
        self._keyring = keyring
        self._reading = asyncio.Lock()
        self.successful = True
        self.succeeded_at = time()

    async def reload_all(self) -> None:
        """Read everything again, the keys as well."""
        if self._keyring is not None:
            await self._keyring.reload()
        await self.reload()

    async def reload(self) -> None:
        async with self._reading:  # or what was read first might be taken over last
            await self._reload()

    async def _reload(self) -> None:
        try:
            config, specs = await asyncio.to_thread(self._read)
            await self._fleet.apply(specs, *self._sources.promised_by(config))
        except (ConfigError, ValueError) as error:
            self.successful = False
            log.error("Not reloaded, what runs goes on: %s", error)
            return
        self.successful, self.succeeded_at = True, time()

    def _read(self) -> tuple[Config, list[UpstreamSpec]]:
        config = self._sources.read_config()
        return config, self._sources.read_upstreams(config)

    def metrics(self) -> Iterator[Metric]:
        label = ["service"]
        good = GaugeMetricFamily(
            "quintet_config_last_reload_successful", "0 when what is written now is wrong and not used", labels=label
        )
        parts: list[Reloads | Keyring] = [self] if self._keyring is None else [self, self._keyring]
        good.add_metric(["router"], float(all(part.successful for part in parts)))
        at = GaugeMetricFamily(
            "quintet_config_last_reload_success_timestamp_seconds", "When it was last taken over", labels=label
        )
        at.add_metric(["router"], max(part.succeeded_at for part in parts))
        yield from (good, at)

    async def watch(self) -> None:
        """Reload whenever a watched file has changed and then stayed as it is for a moment, until cancelled."""
        if self._sources.watched:
            async for _ in settled(self._sources.signature, self._sources.first, self._seconds):
                await self.reload()
