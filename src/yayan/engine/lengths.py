"""How many tokens a draft should guess: what has paid so far, by measured seconds and by the share of guesses taken."""

from collections import deque

WEIGHT = 0.2  # of the newest measurement in a moving mean
KEPT = 5  # last measurements of a pass and of a guess, of which the fastest counts: what disturbs only slows down
LONGEST = 8
HOPE = 0.7  # the share of guesses taken, before anything is known
FIRST_PLAIN = 3  # rounds of plain decoding, to know what it costs
FIRST_TRIES = 3  # rounds that may lose time at first
TRIAL = 2  # rounds of a later trial: before its first guess the draft must read what was said without it
# After so many rounds plain decoding is measured again, and the oldest measurement of each other length of a pass is
# forgotten: else a slow moment would count for ever
AGAIN = 32
CREDIT = 4  # rounds of plain decoding: so much of what was gained may be lost again
LOSS = 0.02  # share of the time that may be lost to trying again


class DraftLengths:
    """Chooses the number of guesses for each round, and learns from each.

    With a share a of guesses taken, k guesses give (1 - a^(k+1)) / (1 - a) tokens on average; they cost a pass over
    k + 1 tokens and k guesses. The k with the most tokens a second is chosen, 0 (plain decoding) among them. Where
    plain decoding is best, a trial is made again as soon as it can lose at most `LOSS` of the time since the start.
    `fixed`: always so many.
    """

    def __init__(self, fixed: int | None = None) -> None:
        self.fixed = fixed
        self.share = HOPE
        self.rounds, self.tries = 0, 0
        self.trial_rounds = 0  # that are still to come
        self.guesses: deque[float] = deque(maxlen=KEPT)  # seconds of one guess
        self.guess_seconds = 0.0  # the fastest of them
        self.passes: dict[int, deque[float]] = {}  # seconds by tokens in the pass
        self.pass_seconds: dict[int, float] = {}  # the fastest of them
        self.seconds = 0.0  # of all rounds
        self.lost_seconds = 0.0  # by guessing, against plain decoding; less than 0 where it gained

    def choose(self) -> int:
        """Tokens to guess now."""
        if self.fixed is not None:
            return self.fixed
        if len(self.passes.get(1, ())) < FIRST_PLAIN or self.rounds % AGAIN == 0:
            return 0
        if self.tries < FIRST_TRIES:
            return 1
        best = max(range(LONGEST + 1), key=self.tokens_per_second)
        if best:
            return best if self.may_lose(best) else 0
        if not self.trial_rounds and self.may_lose(1):
            self.trial_rounds = TRIAL
        return 1 if self.trial_rounds else 0

    def tokens_per_second(self, count: int) -> float:
        a = min(self.share, 0.999)
        return (1 - a ** (count + 1)) / (1 - a) / self.round_seconds(count)

    def round_seconds(self, count: int) -> float:
        """Expected of a round with so many guesses; a pass that was never made costs as its neighbours suggest."""
        known = self.pass_seconds
        rows = count + 1
        if rows in known:
            seconds = known[rows]
        else:
            below = max((n for n in known if n < rows), default=1)
            above = min((n for n in known if n > rows), default=None)
            if above is None:  # as the longest two suggest
                above, low = below, max((n for n in known if n < below), default=below)
            else:
                low = below
            slope = max(known[above] - known[low], 0.0) / max(above - low, 1)
            seconds = known[below] + slope * (rows - below)
        return seconds + count * self.guess_seconds

    def may_lose(self, count: int) -> bool:
        """Whether a round whose guesses are all wrong leaves the loss within its bounds."""
        loss = self.round_seconds(count) - self.pass_seconds[1]
        return self.lost_seconds + loss <= LOSS * self.seconds

    def learn(self, wanted: int, guesses: int, taken: int, guess_seconds: float, pass_seconds: float) -> None:
        """A round: how many guesses were asked for, made and taken, and what each half cost."""
        rows = guesses + 1
        self.rounds += 1
        if self.rounds % AGAIN == 0:
            self.forget_oldest()
        self.passes.setdefault(rows, deque(maxlen=KEPT)).append(pass_seconds)
        self.pass_seconds[rows] = min(self.passes[rows])
        self.seconds += guess_seconds + pass_seconds
        if not wanted:
            return
        self.guesses.append(guess_seconds / max(guesses, 1))
        self.guess_seconds = min(self.guesses)
        if guesses:
            self.tries += 1
            seen = min(taken + 1, guesses)  # behind the first wrong guess nothing is known
            self.share += (taken / seen - self.share) * (1 - (1 - WEIGHT) ** seen)
        plain = self.pass_seconds.get(1, pass_seconds)
        lost = self.round_seconds(guesses) - (taken + 1) * plain
        if self.trial_rounds == TRIAL:  # the draft had to catch up
            lost += guess_seconds - guesses * self.guess_seconds
        self.trial_rounds = max(self.trial_rounds - 1, 0)
        self.lost_seconds = max(self.lost_seconds + lost, -CREDIT * plain)

    def forget_oldest(self) -> None:
        """Of each length of a pass but one token; a length with no measurement left will be tried again."""
        for rows in [rows for rows in self.passes if rows > 1]:
            self.passes[rows].popleft()
            if self.passes[rows]:
                self.pass_seconds[rows] = min(self.passes[rows])
            else:
                del self.passes[rows], self.pass_seconds[rows]
