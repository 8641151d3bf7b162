"""`policy ...`: check policies, explain their rulings, and simulate changes."""

from pathlib import Path
from typing import Annotated

import typer

from ilis_guard.cli.console import AsJson, count, escape, out, print_json, print_line, step_bars
from ilis_guard.errors import FactsError
from ilis_guard.types import Stage

PolicyName = Annotated[str, typer.Argument(help="A policy file, or the name of one that comes with ilis_guard.")]
FACTS_HELP = (
    "The facts, as YAML or JSON: '{uncertainty: 0.4, tier: small, labels: {topic: legal}}', or the path of a file that "
    "holds them (@file). With --decision: facts that aren't on record, or replace those that are."
)

commands = typer.Typer(name="policy", help="Check, explain and simulate policies.", no_args_is_help=True)
EXIT_WARNINGS = 1


@commands.command()
def check(
    policy: PolicyName,
    config: Annotated[Path | None, typer.Option("--config", "-c", help="Check it against this guard.yaml.")] = None,
    strict: Annotated[bool, typer.Option(help="Exit with status 1 where there is a warning.")] = False,
) -> None:
    """Show a policy's errors with file, line and column, or its rules and warnings.

    A policy with an error is loaded by no guard, nor is a guard.yaml with a model folder that is damaged or quantised
    otherwise than its tier says: exit status 2. A warning is about a rule that may be meant as it is.
    A note (the policy is in shadow mode) is neither.
    """
    from ilis_guard.cli.policy_tables import certificates_table, notice_line, policy_view
    from ilis_guard.config.guard_yaml import read_config
    from ilis_guard.models.model_files import check_folder
    from ilis_guard.policy import Policy
    from ilis_guard.policy.binding import PolicyContext, check_config
    from ilis_guard.policy.tier_departures import departure_notices

    checked = Policy.load(policy)
    found, certified = checked.notices(), None
    if config is not None:
        operated = read_config(config)
        certified = check_config(checked, operated)
        found += checked.config_notices(operated)
        for tier in operated.tiers:
            if tier.model is not None and Path(tier.model).is_dir():
                check_folder(Path(tier.model), tier.precision)
        bundles = PolicyContext.of_config(operated).scored_by()
        found += (*checked.score_notices(bundles), *departure_notices(operated, bundles))
    warnings = sum(notice.level == "warning" for notice in found)
    out.print(policy_view(checked))
    if certified:
        out.print(certificates_table(certified))
    for notice in found:
        print_line(notice_line(notice))
    is_ok = not (strict and warnings)
    verdict = "[green]ok[/green]" if is_ok else "[red]refused[/red]"
    warned = f" ({count(warnings, 'warning')})" if warnings else ""
    print_line(f"{verdict}: {escape(policy)}, fingerprint {checked.fingerprint}{warned}")
    if not is_ok:
        raise typer.Exit(EXIT_WARNINGS)


@commands.command()
def schema() -> None:
    """Print the policy language as a JSON Schema: editors complete a policy's keys and underline errors with it.

    Save it, and name it in the policy's first line: # yaml-language-server: $schema=policy.schema.json
    """
    from ilis_guard.policy.schema import json_schema_text

    typer.echo(json_schema_text(), nl=False)


@commands.command()
def explain(
    policy: PolicyName,
    facts: Annotated[str | None, typer.Option(metavar="YAML|@FILE", help=FACTS_HELP)] = None,
    decision: Annotated[
        Path | None, typer.Option(help="Explain this decision (ask --json) or ticket (queue show --json).")
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="With --decision: the guard.yaml whose tiers there were.")
    ] = None,
    stage: Annotated[
        Stage | None,
        typer.Option(help="With --facts alone: the stage whose rules apply.", show_default="answer"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Explain which rule decides and why: each part of its condition, and the rules that are passed over."""
    from ilis_guard.cli.policy_tables import explanation_view
    from ilis_guard.policy import Explanation, Facts, Policy
    from ilis_guard.policy.facts_input import given_facts
    from ilis_guard.policy.records import read_decision
    from ilis_guard.policy.replay import Replay, replay

    if facts is None and decision is None:
        raise FactsError("there is nothing to explain; give --facts '{uncertainty: 0.4}', or --decision FILE")
    if decision is not None and stage is not None:
        raise FactsError(
            f"--stage {stage} doesn't go with --decision: each of its attempts is explained at the stages that it came "
            "to; leave --stage out"
        )
    if decision is None and config is not None:
        raise FactsError(
            "--config goes with --decision only, whose tiers it tells; facts say themselves where they stand "
            "({tier: small, last_tier: false}): leave --config out"
        )
    loaded = Policy.load(policy)
    given = {} if facts is None else given_facts(facts)
    explained: Explanation | Replay
    if decision is None:
        explained = loaded.explain(Facts(**given), stage or "answer")
    else:
        record = read_decision(decision)
        explained = replay(loaded, record, larger_tiers=_larger_tiers(record.attempts[-1].tier, config), given=given)
    if as_json:
        print_json(explained.to_dict())
    else:
        out.print(explanation_view(explained), highlight=False, soft_wrap=True)


@commands.command()
def simulate(  # noqa: PLR0917 - each is an option
    old: Annotated[str, typer.Argument(help="The policy in force: a file, or a name that comes with ilis_guard.")],
    new: Annotated[str, typer.Argument(help="The policy that may take its place.")],
    on: Annotated[Path, typer.Option(help="A table of attempts, made by `ilis-guard score`.")],
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="The guard.yaml whose bundles a guarantee rests on.")
    ] = None,
    requests_per_hour: Annotated[float, typer.Option(min=0, help="The traffic that reviews are counted for.")] = 100,
    html: Annotated[Path | None, typer.Option(help="Also write it all to this HTML file.")] = None,
    changed: Annotated[
        Path | None, typer.Option(help="Also write every request whose action changes to this JSONL file.")
    ] = None,
    all_rows: Annotated[
        bool, typer.Option("--all-rows", help="Also on requests that a bundle has seen, which flatter it.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap.")] = 0,
) -> None:
    """Compare two policies on recorded requests, without calling a model."""
    from ilis_guard.cli.lab_tables import simulation_view
    from ilis_guard.config.guard_yaml import read_config
    from ilis_guard.lab.report import report
    from ilis_guard.lab.simulate import simulate_both, write_changes
    from ilis_guard.policy import Policy

    policies = Policy.load(old), Policy.load(new)
    with step_bars() as progress:
        simulated = simulate_both(
            *policies,
            on,
            requests_per_hour=requests_per_hour,
            config=None if config is None else read_config(config),
            all_rows=all_rows,
            seed=seed,
            progress=progress,
        )
    out.print(simulation_view(simulated), highlight=False)
    if html is not None:
        html.write_text(report(simulated, old=policies[0], new=policies[1]), encoding="utf-8")
        print_line(f"page in {html}")
    if changed is not None:
        rows = write_changes(changed, simulated)
        print_line(f"{count(rows, 'row')} in {changed}")


def _larger_tiers(tier: str, config: Path | None) -> list[str]:
    """The tiers that are larger than this one; none without a guard.yaml."""
    from ilis_guard.config.guard_yaml import read_config

    if config is None:
        return []
    tiers = [one.name for one in read_config(config).tiers]
    if tier not in tiers:
        raise FactsError(f"{config}: the decision's tier {tier!r} isn't one of its tiers, which are {tiers!r}")
    return tiers[tiers.index(tier) + 1 :]
