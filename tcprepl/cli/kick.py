"""``tcprepl kick``: end the connections of a peer, and tell it why."""

from __future__ import annotations

import json

import click

from tcprepl.cli.api import Api
from tcprepl.cli.arguments import token_options, url_option
from tcprepl.protocol.display import displayable


@click.command("kick")
@click.argument("peer")
@url_option("--to", "The server")
@token_options
@click.option("--why", default="", help="What the peer is told, at most 200 characters.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object for each connection.")
def command(peer: str, url: str, token: str | None, why: str, as_json: bool) -> None:
    """End the connections of PEER: a name, an address with its port, or the number of one.

    The peer hears why, and may connect again, as our own clients do. Who is to stay out has its
    token taken away (replication.tokens, then `tcprepl reload`). Names, addresses and numbers
    are those that `tcprepl top` and STATUS show.

    \b
    Example:
      $ tcprepl kick worker3 --why 'it reads nothing for an hour'
      worker3 (127.0.0.1:51016), connection 12: ended
    """
    if not peer.strip():
        raise click.BadParameter(
            "it names nobody: expected the name of a peer, its address with the port, or the "
            "number of a connection, as `tcprepl top` shows them",
            param_hint="PEER",
        )
    api = Api(url, token)
    body = json.dumps({"peer": peer, "why": why}).encode()
    for ended in api.request("POST", "/_tcprepl/v1/kick", body=body)["kicked"]:
        if as_json:
            click.echo(json.dumps(ended))
        else:
            who = f"{ended['name'] or '-'} ({ended['address']})"
            click.echo(displayable(f"{who}, connection {ended['conn_id']}: ended"))
