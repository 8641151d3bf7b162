"""A policy: rules that turn facts into a ruling."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

from ilis_guard.config.guard_yaml import GuardConfig
from ilis_guard.config.strict_yaml import Document, parse, read
from ilis_guard.errors import PolicyError
from ilis_guard.policy.engine import DEFAULT_QUEUE, BoundRule, Engine, at_stage
from ilis_guard.policy.explanation import Explanation, explain
from ilis_guard.policy.facts import AUDIT_SALT, Facts, is_sampled
from ilis_guard.policy.lint import Notice, config_notices, notices
from ilis_guard.policy.loader import SCORE, bind, locate
from ilis_guard.policy.reachability import ReachabilityAnalysis, may_answer
from ilis_guard.policy.schema import Audit, Budget, ColdStart, Guarantee, PolicyFile, Rule
from ilis_guard.policy.score_limits import Bundles, IdleThreshold, describe_idle, idle_thresholds
from ilis_guard.types import Action, Mode, PromptRuling, Ruling, Stage


@dataclass(frozen=True, slots=True, eq=False)
class Policy:
    """Ordered rules, each a condition and an action; the first that holds decides. Built by `load` or `parse`."""

    name: str
    description: str
    """Empty where the file has none."""
    mode: Mode
    guarantee: Guarantee | None
    budget: Budget | None
    audit: Audit | None
    cold_start: ColdStart | None
    rules: tuple[Rule, ...]
    fingerprint: str
    """16 hexadecimal digits of the content; comments, spacing and the order of keys don't count."""
    _file: PolicyFile = field(repr=False)
    _engine: Engine = field(repr=False)
    _document: Document = field(repr=False)

    @classmethod
    def load(cls, path: str | Path) -> "Policy":
        """Read a policy file, or the shipped policy of this name (``default``: no folder, no suffix).

        Raises:
            PolicyError: the file can't be read or is wrong; a line per problem, each with ``file:line:column``.
        """
        return cls._of(read(locate(path), error=PolicyError))

    @classmethod
    def parse(cls, text: str, path: str = "<string>") -> "Policy":
        """Read a policy from a string; `path` is what messages call it.

        Raises:
            PolicyError: the text is wrong; a line per problem, each with ``path:line:column``.
        """
        return cls._of(parse(text, path=path, error=PolicyError))

    @classmethod
    def _of(cls, document: Document) -> "Policy":
        file, bound = bind(document)
        return cls(
            name=file.name,
            description=file.description or "",
            mode=file.mode,
            guarantee=file.guarantee,
            budget=file.budget,
            audit=file.audit,
            cold_start=file.cold_start,
            rules=file.rules,
            fingerprint=_fingerprint(file),
            _file=file,
            _engine=Engine(bound),
            _document=document,
        )

    def evaluate(self, facts: Facts) -> Ruling:
        """What is to be done, given `facts`. The same facts always get the same ruling; nothing is raised."""
        return self._engine.evaluate(facts)

    def evaluate_prompt(self, facts: Facts) -> PromptRuling:
        """What is to be done before a token is generated: the word of the rules of stage `prompt`.

        The uncertainty in `facts` is the prompt's: the probability that the answer will be wrong. Nothing is raised.
        """
        return self._engine.evaluate_prompt(facts)

    def may_answer(self, facts: Facts) -> bool:
        """Whether an answer that is under way may still be given, if its uncertainty stays as in `facts`.

        What an answer has only at its end (`reachability.UNKNOWN_UNTIL_END`) rules nothing out. Nothing is raised.
        """
        tiers_may_go = self.budget is not None and self.budget.max_cost is not None
        return may_answer(self._engine.at("answer"), facts, tiers_may_go=tiers_may_go)

    def explain(self, facts: Facts, stage: Stage = "answer") -> Explanation:
        """What is to be done, given `facts`, and why: what became of each rule, and what its condition's parts are.

        The ruling is the one that `evaluate`, or at stage `prompt` `evaluate_prompt`, gives.
        """
        return explain(self._engine, facts, stage, mode=self.mode)

    def audits(self, sampling_key: str) -> bool:
        """Whether the answered request of this sampling_key is one of those that a person looks at all the same."""
        return self.audit is not None and is_sampled(sampling_key, AUDIT_SALT, self.audit.fraction)

    def unhandled_uncertified(self, tier: str) -> str:
        """What the rules leave open where nothing can be certified on a tier; empty where they decide in every case.

        A rule only counts where it can be seen to hold: one that looks at labels or does arithmetic may hold or not,
        and one with a `sample`, or that retries on a tier by name, may be passed over.
        """
        where = ReachabilityAnalysis(self._engine.rules).undecided_where_uncertified(tier)
        return f"no rule surely decides where nothing is certified and {where}" if where else ""

    def bound_rules(self, stage: Stage) -> tuple[BoundRule, ...]:
        """The rules of a stage with their conditions, in order."""
        return at_stage(self._engine.rules, stage)

    def notices(self) -> tuple[Notice, ...]:
        """What its author may not mean, though it can be loaded; takes under a second."""
        return notices(self._file, self._engine, self._document)

    def config_notices(self, config: GuardConfig) -> tuple[Notice, ...]:
        """What neither its author nor the operator of this guard.yaml may mean, though the two go with one another."""
        return config_notices(self._file, self._engine.rules, self._document, config)

    def score_notices(self, bundles: Bundles) -> tuple[Notice, ...]:
        """What speaks against the scores that its rules rest on: the bundles' findings, and thresholds without effect.

        Args:
            bundles: what scores at each stage, by tier.
        """
        from ilis_guard.scoring.findings import describe  # with numpy, which reading policies doesn't need

        findings = (
            Notice("warning", f"{'bundle' if stage == 'answer' else 'prompt_bundle'} of {tier!r}", describe(finding))
            for stage, by_tier in bundles.items()
            for tier, bundle in by_tier.items()
            for finding in bundle.metadata.findings
        )
        idle = (
            Notice("warning", self.place(one.rule, "when"), describe_idle(one)) for one in self.idle_thresholds(bundles)
        )
        return (*findings, *idle)

    def idle_thresholds(self, bundles: Bundles) -> tuple[IdleThreshold, ...]:
        """The thresholds of typicality that no score of a tier can be on the other side of."""
        return tuple(idle_thresholds(self._engine.rules, bundles))

    @property
    def prompt_rules(self) -> tuple[Rule, ...]:
        """The rules of stage `prompt`."""
        return tuple(bound.rule for bound in at_stage(self._engine.rules, "prompt"))

    @property
    def scored_prompt_rules(self) -> tuple[Rule, ...]:
        """Those of them that look at the prompt's score."""
        return tuple(
            bound.rule for bound in at_stage(self._engine.rules, "prompt") if SCORE & set(bound.condition.names)
        )

    @property
    def retry_targets(self) -> dict[str, str]:
        """The tiers that retry rules name, by rule id."""
        return {rule.id: rule.to for rule in self.rules if rule.do is Action.RETRY and rule.to is not None}

    @property
    def queues(self) -> frozenset[str]:
        """The queues that escalate rules and the audit send to."""
        escalated = frozenset(rule.to or DEFAULT_QUEUE for rule in self.rules if rule.do is Action.ESCALATE)
        return escalated if self.audit is None else escalated | {self.audit.queue}

    def key_place(self, *keys: str) -> str:
        """``file:line:column`` of what stands under these keys, one inside the other."""
        return self._document.place(keys)

    def place(self, rule_id: str, key: str) -> str:
        """``file:line:column`` of a rule's key, or of the rule where it has no such key.

        Raises:
            KeyError: the policy has no such rule.
        """
        for index, rule in enumerate(self.rules):
            if rule.id == rule_id:
                return self._document.place(("rules", index, key))
        raise KeyError(rule_id)


def _fingerprint(file: PolicyFile) -> str:
    # Keys left out don't count, so that keys of later releases leave the fingerprints of today's files as they are.
    content = json.dumps(file.model_dump(mode="json", exclude_unset=True), sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]
