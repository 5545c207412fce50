"""From what the engine says of a sequence to what is told of it: its text, its tokens, where each begins."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from gptstar.data.tokenizer import Tokenizer
from gptstar.generation.continuation import Prompt
from gptstar.generation.engine import Event
from gptstar.generation.logprobs import TokenLogprob
from gptstar.generation.streaming import TextStream, token_bytes

LEAST = -9999.0  # JSON has no infinity; OpenAI's reference names this number


@dataclass(frozen=True)
class Said:
    """A token that is told of.

    logprob  None for the first of a prompt, which follows nothing
    top      the likeliest tokens in its place
    offset   where it begins in the text
    """

    token: int
    logprob: float | None
    top: list[tuple[int, float]]
    offset: int


@dataclass
class Piece:
    """What is decided of a sequence since the piece before. finish_reason is None until the last one."""

    text: str
    said: list[Said]
    finish_reason: str | None

    def __bool__(self) -> bool:
        return bool(self.text or self.said or self.finish_reason)

    def add(self, other: Piece) -> None:
        """All pieces together are the answer that is not streamed."""
        self.text += other.text
        self.said += other.said
        self.finish_reason = other.finish_reason


class Spelling:
    """How tokens are shown."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.bytes: Callable[[int], bytes] = token_bytes(tokenizer)

    def text(self, token: int) -> str:
        """Its characters; bytes:\\xe2\\x98 where it ends or begins within one."""
        data = self.bytes(token)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


class Places:
    """Where each token begins in the text of all, whatever text is held back."""

    def __init__(self, tokenizer: Tokenizer, spelling: Spelling, prompt: Prompt, echo: bool) -> None:
        self._stream, self._spelling, self._end = TextStream(tokenizer), spelling, 0
        self.prompt = [self.of(token) for token in prompt.shown]
        if not echo:
            self._end -= len(prompt.text)

    def of(self, token: int) -> int:
        """The number of characters before it. That of the character for a token that only completes one."""
        start = self._end
        piece = self._stream.feed(token)
        self._end += len(piece)
        own = self._spelling.text(token)
        # What was held back comes out before it.
        return max(0, self._end - len(own) if own and piece.endswith(own) else start)


class Writing:
    """One sequence on its way. A token is told of once its text is, and not if it is part of a stop string.

    The token that ends a text is told of too: of a prompt that is only scored, clients drop the last one unseen.
    """

    def __init__(
        self, tokenizer: Tokenizer, spelling: Spelling, prompt: Prompt, echo: bool = False, wanted: bool = False
    ) -> None:
        """echo: the prompt comes first. wanted: tokens are told of, and not only text."""
        self.prompt, self._echo = prompt, echo
        self._places = Places(tokenizer, spelling, prompt, echo) if wanted else None
        self._told = 0  # characters
        self._begun = False
        self._waiting: deque[Said] = deque()
        self._sum_logprobs, self._n_logprobs, self._n_chosen = 0.0, 0, 0

    @property
    def mean_logprob(self) -> float:
        """Of the tokens chosen, nats; 0 for none."""
        return self._sum_logprobs / max(1, self._n_logprobs)

    @property
    def n_written(self) -> int:
        """Tokens chosen; the one that writes the white space at the end of the prompt again is not counted."""
        return max(0, self._n_chosen - (self.prompt.first is not None))

    def feed(self, event: Event, scored: list[TokenLogprob] | None) -> Piece:
        """scored: the prompt's tokens but the first, where it is echoed and tokens are wanted."""
        text, said = event.text, []
        if (
            not self._begun and self._echo
        ):  # all of the prompt is told of, whatever a stop string leaves of what follows
            text = self.prompt.text + text
            said += self._of_prompt(scored or [])
        self._begun = True
        self._told += len(text)
        self._n_chosen += len(event.tokens)
        self._n_logprobs += len(event.logprobs)
        self._sum_logprobs += sum(said.logprob for said in event.logprobs)
        if self._places is not None:
            self._waiting += [_said(one, self._places.of(one.token)) for one in event.logprobs]
        done = event.done
        whole = done is not None and not isinstance(done.stopped_by, str)
        while self._waiting and (whole or self._waiting[0].offset < self._told):
            said.append(self._waiting.popleft())
        reason = None if done is None else "length" if done.finish_reason == "length" else "stop"
        return Piece(text, said, reason)

    def _of_prompt(self, scored: list[TokenLogprob]) -> list[Said]:
        if self._places is None or not self.prompt.shown:
            return []
        first, *others = self._places.prompt
        start = Said(self.prompt.shown[0], None, [], first)
        return [start, *(_said(one, offset) for one, offset in zip(scored, others, strict=True))]


def _said(one: TokenLogprob, offset: int) -> Said:
    return Said(one.token, max(LEAST, one.logprob), [(token, max(LEAST, value)) for token, value in one.top], offset)
