"""`mpo sample`: what a model answers."""

from collections.abc import Sequence
from typing import Annotated

import typer
from pydantic import BaseModel

from mpo_client.cli.comparing import MaxTokens, PromptsFile, Seed, Temperature, TopP, read_prompts
from mpo_client.cli.error_lines import Misuse
from mpo_client.cli.models import ModelId
from mpo_client.cli.screen import Screen, plain
from mpo_client.cli.session import Session, connected


def register(app: typer.Typer) -> None:
    app.command()(sample)


@connected
def sample(
    session: Session,
    model: ModelId,
    prompt: Annotated[list[str] | None, typer.Argument(help="One or more.")] = None,
    prompts: PromptsFile = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="As a user's turn, by the model's chat template.")
    ] = False,
    n: Annotated[int, typer.Option(min=1, help="Responses a prompt.")] = 1,
    stop: Annotated[list[str] | None, typer.Option(help="A response ends before it; repeatable.")] = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    seed: Seed = None,
) -> None:
    """Ask a model. Prints its responses; the same seed gives the same text."""
    asked = [*(prompt or []), *(read_prompts(prompts) if prompts else [])]
    if not asked:
        raise Misuse("there is nothing to ask: give a prompt, or --prompts FILE")
    if chat and len(asked) > 1:
        raise Misuse("--chat takes one prompt")
    client, screen = session.client, session.screen
    if chat:
        said = client.inference.chat(
            model=model,
            messages=[{"role": "user", "content": asked[0]}],
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            n=n,
            stop=stop,
        )
        return _show(screen, said, [choice.message.content for choice in said.choices], n)
    found = client.inference.complete(
        model=model,
        prompt=asked,
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        n=n,
        stop=stop,
    )
    return _show(screen, found, [choice.text for choice in found.choices], n)


def _show(screen: Screen, answer: BaseModel, texts: Sequence[str], n: int) -> None:
    if screen.as_json:
        return screen.document(answer)
    for number, text in enumerate(texts):
        if len(texts) > 1:
            screen.note(f"--- prompt {number // n + 1}, response {number % n + 1}")
        screen.show(plain(text))
    return None
