"""Writing to InfluxDB 1.8 and later. In a module of its own: only a server that has it costs the import."""

from __future__ import annotations

import urllib3
from influxdb_client.client.influxdb_client import InfluxDBClient
from influxdb_client.client.write_api import SYNCHRONOUS
from influxdb_client.domain.write_precision import WritePrecision
from influxdb_client.rest import ApiException

from fleet_controller.config import InfluxConfig
from fleet_controller.errors import StoreUnavailableError
from fleet_controller.store.influx_http import no_answer, raise_for, token_of, user_of


class WriterV2:
    """The `/api/v2/write` endpoint of InfluxDB 1.8 and later, through influxdb-client's synchronous API.

    Its batching API would answer before anything is stored, and drop what the database refuses.
    """

    def __init__(self, config: InfluxConfig) -> None:
        self._config = config
        # A 1.8 server takes "user:password" for a token.
        token = token_of(config) or ":".join(user_of(config) or ("", ""))
        self._client = InfluxDBClient(
            url=config.url, token=token, org=config.org, timeout=round(config.timeout_s * 1000), enable_gzip=False
        )
        self._api = self._client.write_api(write_options=SYNCHRONOUS)

    def write(self, lines: bytes) -> None:
        """Store lines; see the module for what is raised."""
        config = self._config
        try:
            self._api.write(config.bucket_name, config.org, lines, write_precision=WritePrecision.NS)  # type: ignore[arg-type]  # the library types its own constant as str
        except ApiException as error:
            raise_for(error.status or 0, str(error.body or error.reason or ""))
        except urllib3.exceptions.HTTPError as error:
            raise StoreUnavailableError(no_answer(error)) from None

    def close(self) -> None:
        """Give its connections back."""
        self._api.close()  # type: ignore[no-untyped-call]  # the library has no types here
        self._client.close()  # type: ignore[no-untyped-call]  # as above
