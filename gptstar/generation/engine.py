"""Many requests decoded together, arriving and leaving at any time (continuous batching; Yu et al., "Orca", OSDI 2022).

A round reads one token of every sequence that is being written, in one forward pass, and then as much of the waiting
prompts as its token budget still allows, a piece of each in turn: long prompts hold up neither those who write nor
short prompts behind them. A sequence leaves in the round it ends or is cancelled in.

A row of the cache belongs to one sequence. What is in a row stays there until the row is needed, and a new prompt takes
over from any row what it has in common with it, so shared beginnings are computed once.

Plain Python over tensors: `Engine.step` does one round; threads, servers and streams are the caller's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from gptstar.data.tokenizer import Tokenizer
from gptstar.errors import UserError
from gptstar.generation.continuation import Continuation, Prompt
from gptstar.generation.decoding import PIECE, Decoder
from gptstar.generation.generate import Generation
from gptstar.generation.logprobs import TokenLogprob, token_logprobs
from gptstar.generation.penalties import History
from gptstar.generation.randomness import fresh_seed, sequence_seed
from gptstar.generation.sampling import Sampler
from gptstar.generation.settings import SamplingSettings
from gptstar.model.cache import KeyValueCache
from gptstar.model.choices import capacity_of
from gptstar.model.transformer import GPT


@dataclass(frozen=True)
class Event:
    """What happened to a sequence in a round: text that is decided now, and at its end the whole.

    request, index: the number `submit` gave, and which of its n sequences. tokens: those chosen, at most one, among
    them an end of text or stop token. prompt_logprobs: on the first event of sequence 0, if they were asked for.
    """

    request: int
    index: int
    text: str
    tokens: list[int]
    logprobs: list[TokenLogprob]
    done: Generation | None
    prompt_logprobs: list[TokenLogprob] | None = None


class Sequence:
    """One sequence on its way: its prompt, what is written of it, and its row."""

    def __init__(
        self, request: int, index: int, prompt: Prompt, tokenizer: Tokenizer, seed: int, n_scored: int | None = None
    ) -> None:
        """n_scored: how many of the likeliest tokens are reported beside each of the prompt; None: nothing is."""
        self.request, self.index, self.prompt, self.seed = request, index, prompt, seed
        self.continuation = Continuation(tokenizer, prompt)
        self.tokens = list(prompt.tokens)  # of prompt and continuation
        self.n_read = 0  # how many of them the model has read
        self.row = -1
        self.told = False  # whether there was an event of it
        self.pieces: list[str] = []
        self.logprobs: list[TokenLogprob] = []
        self.n_scored = n_scored
        self.prompt_logprobs: list[TokenLogprob] | None = None if n_scored is None else []

    @property
    def written(self) -> int:
        """How many tokens follow the prompt."""
        return len(self.tokens) - len(self.prompt.tokens)

    def finished(self) -> Generation:
        """All that is known of it, once it has ended."""
        done, reason = self.continuation, self.continuation.finish_reason
        assert reason is not None
        wanted = self.prompt.settings.logprobs is not None
        return Generation(
            prompt=self.prompt.text,
            text="".join(self.pieces),
            tokens=done.tokens,
            finish_reason=reason,
            stopped_by=done.stopped_by,
            seed=self.seed,
            logprobs=self.logprobs[: len(done.tokens)] if wanted else None,
        )


class Engine:
    """Serves requests over one model.

    max_rows   sequences that are worked on at a time; the others wait in the order they came
    capacity   tokens a sequence can have, prompt and continuation; None: what the model can read, or twice its context
    budget     tokens read in a round, at most; those who write come first
    decoder    a `Decoder(model, compiled=True)` is faster
    """

    def __init__(
        self,
        model: GPT,
        tokenizer: Tokenizer,
        max_rows: int = 16,
        capacity: int | None = None,
        budget: int = 512,
        decoder: Decoder | None = None,
    ) -> None:
        if max_rows < 1 or budget < 1:
            raise UserError(f"max_rows={max_rows} and budget={budget} must be at least 1")
        if capacity is not None and (capacity < 1 or capacity > (model.longest or capacity)):
            raise UserError(
                f"capacity={capacity} must be at least 1 and at most the {model.longest} tokens of the model"
            )
        self.model, self.tokenizer, self.decoder = model, tokenizer, decoder or Decoder(model)
        self.decoder.check(tokenizer)
        self.capacity = capacity or capacity_of(model.config)
        self.budget, self.max_rows = budget, max_rows
        self.cache = model.new_rows_cache(max_rows, self.capacity)
        self.device = model.device
        self.contents: list[list[int]] = [[] for _ in range(max_rows)]  # the tokens whose states each row holds
        self.waiting: deque[Sequence] = deque()
        self.reading: deque[Sequence] = deque()
        self.writing: list[Sequence] = []  # number i has row i
        self.last_used = [0] * max_rows
        self.rounds = self.requests = 0
        self._sampler: tuple[list[Sequence], Sampler, History | None] | None = None

    def submit(self, prompt: str | list[int], settings: SamplingSettings, prompt_logprobs: int | None = None) -> int:
        """Queues a request; its number. Raises UserError for settings out of range and for what is too long.

        prompt_logprobs: how many of the likeliest tokens are reported beside each of the prompt's, as
        `settings.logprobs` says of those chosen.
        """
        return self.submit_ready(self.prepare(prompt, settings), settings, prompt_logprobs)

    def prepare(self, prompt: str | list[int], settings: SamplingSettings) -> Prompt:
        """The part of `submit` that takes time where a prompt is long, for any thread. Raises as `submit` does."""
        settings.check(self.tokenizer.vocab_size)
        return Prompt(self.tokenizer, prompt, settings, self.capacity)

    def submit_ready(self, ready: Prompt, settings: SamplingSettings, prompt_logprobs: int | None = None) -> int:
        """Queues a request whose prompt is prepared; its number."""
        self.requests += 1
        seed = fresh_seed() if settings.seed is None else settings.seed
        for index in range(settings.n):
            n_scored = prompt_logprobs if index == 0 else None  # the same for all of them
            self.waiting.append(
                Sequence(self.requests, index, ready, self.tokenizer, sequence_seed(seed, index), n_scored)
            )
        return self.requests

    def cancel(self, request: int) -> None:
        """Drops all sequences of a request; their rows are free at once. An unknown or ended request is no error."""
        self.waiting = deque(s for s in self.waiting if s.request != request)
        self.reading = deque(s for s in self.reading if s.request != request)
        for sequence in [s for s in self.writing if s.request == request]:
            self._leave(sequence)

    @property
    def idle(self) -> bool:
        """Whether there is nothing left to do."""
        return not (self.waiting or self.reading or self.writing)

    def run(self) -> Iterator[Event]:
        """Rounds until nothing is left."""
        while not self.idle:
            yield from self.step()

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """One round."""
        self.rounds += 1
        if self.decoder.shared:
            return self._shared_step()
        events = self._write() if self.writing else []
        events += self._empty()
        left = self.budget - len(self.writing)
        while left > 0 and self._admit():
            sequence = self.reading.popleft()
            self._take_over(sequence)
            n_token = min(PIECE, max(left, 1), len(sequence.tokens) - sequence.n_read)
            logits = self._read(sequence, n_token)
            left -= n_token
            events += self._has_read(sequence, logits)
        return events

    def _shared_step(self) -> list[Event]:
        """A round in one pass over the weights, whoever writes and reads: there a pass is what takes the time."""
        events, writing = self._empty(), list(self.writing)
        parts: list[tuple[Tensor, KeyValueCache]] = []
        if writing:
            self.cache.n_active = len(writing)
            parts.append((torch.tensor([[s.tokens[-1]] for s in writing], device=self.device), self.cache))
        left = self.budget - len(writing)
        self._admit()
        reading: list[tuple[Sequence, list[int], KeyValueCache]] = []
        while left > 0 and self.reading:
            sequence = self.reading.popleft()
            self._take_over(sequence)
            piece = sequence.tokens[sequence.n_read :][:left]
            left -= len(piece)
            reading.append((sequence, piece, self.cache.row(sequence.row)))
        parts += [(torch.tensor([piece], device=self.device), cache) for _, piece, cache in reading]
        if not parts:
            return events
        hidden = self.decoder.read_many(parts)
        logits_BV = self.model.logits(torch.cat([x_BTC[:, -1] for x_BTC in hidden]))[:, : self.tokenizer.vocab_size]
        for sequence, piece, cache in reading:
            self.cache.lengths[sequence.row] = cache.length
            self.contents[sequence.row] += piece
        for (sequence, piece, _), x_BTC in zip(reading, hidden[len(parts) - len(reading) :], strict=True):
            if sequence.prompt_logprobs is not None:
                self._score(sequence, self.model.logits(x_BTC[0])[:, : self.tokenizer.vocab_size])
            sequence.n_read += len(piece)
        self.reading.extendleft(sequence for sequence, _, _ in reversed(reading))  # so that rows are moved with them
        if writing:
            events += self._wrote(writing, logits_BV[: len(writing)])
        for i, (sequence, _, _) in enumerate(reading, len(writing)):
            self.reading.popleft()
            events += self._has_read(sequence, logits_BV[i : i + 1])
        return events

    def _has_read(self, sequence: Sequence, logits_BV: Tensor) -> list[Event]:
        """What follows a piece of a prompt: another one, the first token, or nothing, if only the prompt was asked
        about.
        """
        if sequence.n_read < len(sequence.tokens):
            self.reading.append(sequence)
            return []
        if sequence.continuation.finish_reason is None:
            return self._begin(sequence, logits_BV)
        return [self._event(sequence, "", [], [], sequence.finished())]

    def _event(
        self, sequence: Sequence, text: str, tokens: list[int], logprobs: list[TokenLogprob], done: Generation | None
    ) -> Event:
        scored = None if sequence.told else sequence.prompt_logprobs
        sequence.told = True
        return Event(sequence.request, sequence.index, text, tokens, logprobs, done, scored)

    def _empty(self) -> list[Event]:
        """Requests for no tokens are answered at once."""
        empty = [s for s in self.waiting if s.continuation.finish_reason is not None and s.prompt_logprobs is None]
        for sequence in empty:
            self.waiting.remove(sequence)
        return [self._event(s, "", [], [], s.finished()) for s in empty]

    def _write(self) -> list[Event]:
        """The next token of every sequence that is being written."""
        sequences = list(self.writing)
        self.cache.n_active = len(sequences)
        last_B = torch.tensor([s.tokens[-1] for s in sequences], device=self.device)
        return self._wrote(sequences, self.decoder(last_B, self.cache)[:, : self.tokenizer.vocab_size])

    def _wrote(self, sequences: list[Sequence], logits_BV: Tensor) -> list[Event]:
        """Chooses what follows, once the last tokens have been read."""
        for sequence in sequences:
            self.contents[sequence.row].append(sequence.tokens[-1])
            sequence.n_read += 1
            self.last_used[sequence.row] = self.rounds
        sampler, history = self._sampler_of(sequences)
        step_B = torch.tensor([s.written for s in sequences], device=self.device)
        token_B = sampler(logits_BV, step_B, history)
        if history is not None:
            history.append(token_B)
        return self._take(sequences, logits_BV, token_B)

    def _begin(self, sequence: Sequence, logits_BV: Tensor) -> list[Event]:
        """The first token after a prompt that has been read: from now on the sequence is written."""
        at = len(self.writing)
        self.writing.append(sequence)
        if sequence.row != at:
            self._swap(sequence.row, at)
        sampler, history = self._make_sampler([sequence])
        token_B = sampler(logits_BV, torch.zeros(1, dtype=torch.int64, device=self.device), history)
        return self._take([sequence], logits_BV, token_B)

    def _take(self, sequences: list[Sequence], logits_BV: Tensor, token_B: Tensor) -> list[Event]:
        """Adds a token to each sequence; those that end leave."""
        events = []
        for i, token in enumerate(token_B.tolist()):
            sequence = sequences[i]
            n_top = sequence.prompt.settings.logprobs
            logprobs = [] if n_top is None else token_logprobs(logits_BV[i : i + 1], token_B[i : i + 1], n_top)
            text = sequence.continuation.feed(token)
            sequence.tokens.append(token)
            sequence.pieces.append(text)
            sequence.logprobs += logprobs
            done = None
            if sequence.continuation.finish_reason is not None:
                done = sequence.finished()
                self._leave(sequence)
            events.append(self._event(sequence, text, [token], logprobs, done))
        return events

    def _leave(self, sequence: Sequence) -> None:
        self._sampler = None
        self.writing.remove(sequence)
        if sequence.row != len(self.writing):  # the last one takes its place
            self._swap(sequence.row, len(self.writing))

    def _swap(self, a: int, b: int) -> None:
        self.cache.swap(a, b)
        self.contents[a], self.contents[b] = self.contents[b], self.contents[a]
        self.last_used[a], self.last_used[b] = self.last_used[b], self.last_used[a]
        for sequence in (*self.writing, *self.reading):
            if sequence.row in (a, b):
                sequence.row = a if sequence.row == b else b
        self.writing.sort(key=lambda s: s.row)

    def _admit(self) -> bool:
        """Moves waiting sequences to free rows; whether any prompt is being read."""
        while self.waiting and len(self.writing) + len(self.reading) < self.max_rows:
            self._place(self.waiting.popleft())
        return bool(self.reading)

    def _place(self, sequence: Sequence) -> None:
        """Gives a sequence the free row that holds most of its prompt, else the one that is needed least."""
        taken = {s.row for s in (*self.writing, *self.reading)}
        free = [row for row in range(self.max_rows) if row not in taken]
        common = self._in_common(sequence)
        best = max(free, key=lambda row: (common[row], -len(self.contents[row]), -self.last_used[row]))
        self.cache.lengths[best] = sequence.n_read = common[best]
        self.contents[best] = sequence.tokens[: sequence.n_read]
        self.last_used[best] = self.rounds
        sequence.row = best
        self.reading.append(sequence)

    def _take_over(self, sequence: Sequence) -> None:
        """Copies what another row holds of a prompt beyond what has been read of it."""
        common = self._in_common(sequence)
        best = max(range(self.max_rows), key=common.__getitem__)
        if common[best] > sequence.n_read:
            self.cache.copy(best, sequence.row, common[best])
            sequence.n_read = common[best]
            self.contents[sequence.row] = sequence.tokens[: sequence.n_read]

    def _in_common(self, sequence: Sequence) -> list[int]:
        """How much of a prompt each row holds; its last token is always read, for what follows it."""
        if sequence.prompt_logprobs is not None:
            return [0] * self.max_rows  # what has been read has left no logits
        return [_common(held, sequence.tokens[:-1]) for held in self.contents]

    def _read(self, sequence: Sequence, n_token: int) -> Tensor:
        """Reads a piece of a prompt; logits (1, V) after it."""
        piece = sequence.tokens[sequence.n_read : sequence.n_read + n_token]
        cache = self.cache.row(sequence.row)
        if sequence.prompt_logprobs is None:
            logits_BV = self.decoder.read(torch.tensor([piece], device=self.device), cache)
        else:
            logits_TV = self.decoder.extend(piece, cache)
            self._score(sequence, logits_TV[:, : self.tokenizer.vocab_size])
            logits_BV = logits_TV[-1:]
        self.cache.lengths[sequence.row] = cache.length
        self.contents[sequence.row] += piece
        sequence.n_read += n_token
        return logits_BV[:, : self.tokenizer.vocab_size]  # embeddings beyond are never chosen

    def _score(self, sequence: Sequence, logits_TV: Tensor) -> None:
        """How likely the model thought the prompt's tokens, all but the first, which follows nothing."""
        assert sequence.prompt_logprobs is not None and sequence.n_scored is not None
        start = sequence.n_read + 1
        token_T = torch.tensor(sequence.prompt.tokens[start : start + len(logits_TV)], device=self.device)
        sequence.prompt_logprobs += token_logprobs(logits_TV[: len(token_T)], token_T, sequence.n_scored)

    def _sampler_of(self, sequences: list[Sequence]) -> tuple[Sampler, History | None]:
        """Kept for as long as the same sequences are written."""
        if self._sampler is None or self._sampler[0] != sequences:
            self._sampler = (sequences, *self._make_sampler(sequences))
        return self._sampler[1:]

    def _make_sampler(self, sequences: list[Sequence]) -> tuple[Sampler, History | None]:
        sampler = Sampler(
            [s.prompt.settings for s in sequences],
            [s.seed for s in sequences],
            self.tokenizer.vocab_size,
            self.tokenizer.eot_id,
            self.device,
            [s.prompt.first for s in sequences],
        )
        if not sampler.needs_history:
            return sampler, None
        left = max(s.prompt.settings.max_new_tokens - s.written for s in sequences)
        history = History.of([s.tokens for s in sequences], left, self.device)
        prompt_B = torch.tensor([len(s.prompt.tokens) for s in sequences], device=self.device)
        return sampler, History(history.tokens_BS, prompt_B, history.length_B)


def _common(a: list[int], b: list[int]) -> int:
    """How many tokens two lists begin with alike."""
    n = min(len(a), len(b))
    if a[:n] == b[:n]:
        return n
    return next(i for i in range(n) if a[i] != b[i])
