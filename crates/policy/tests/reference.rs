//! `policy::evaluate` against a second, naive reading of what policies mean, on random input; what
//! must hold however policies change; and cases that a person can check.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

#[path = "reference/cases.rs"]
mod cases;
#[path = "reference/generate.rs"]
mod generate;
#[path = "reference/meaning.rs"]
mod meaning;

use meaning::{Entry, Outcome};
use policy::{
    Action, Applicable, Decision, Policy, PolicyName, PolicySet, Request, Verdict, evaluate,
    explain,
};
use proptest::{
    prelude::*,
    test_runner::{RngAlgorithm, TestCaseResult, TestRng, TestRunner},
};
use std::{cell::RefCell, collections::BTreeMap, sync::Arc};

const CASES: u32 = 100_000;
const CASES_OF_A_CHANGE: u32 = 10_000;

fn judge(request: &Request, entries: &[Entry]) -> Verdict {
    let applicable = entries.iter().map(|entry| match entry {
        Entry::Known(policy) => Applicable::Known(policy),
        Entry::Missing(name) => Applicable::Missing(name),
    });
    let verdict = evaluate(request, applicable);
    // The index says the same: the decision, the rule and all; and so does the explanation.
    let set = indexed(entries);
    assert_eq!(set.evaluate(request), verdict);
    let explanation = explain(&set, request);
    assert_eq!(explanation.verdict, verdict);
    let matches =
        |action| explanation.applied.iter().any(|a| a.action == action && !a.dry_run && a.matched);
    match &verdict.decision {
        Decision::Matched { action, .. } => assert!(matches(*action), "{explanation:?}"),
        Decision::NoAllowMatched { .. } => {
            assert!(!matches(Action::Allow) && !matches(Action::Deny), "{explanation:?}");
        }
        Decision::NoPolicy | Decision::Unknown { .. } => {
            assert!(!matches(Action::Deny), "{explanation:?}");
        }
        Decision::ThroughWaypoint | Decision::AroundWaypoint(_) | Decision::Kubelet => {
            panic!("no policy decides this: {explanation:?}");
        }
    }
    assert!(explanation.nearly.iter().all(|n| !n.unmet.is_empty()), "{explanation:?}");
    verdict
}

fn indexed(entries: &[Entry]) -> PolicySet {
    let (mut known, mut missing) = (Vec::new(), Vec::new());
    for entry in entries {
        match entry {
            Entry::Known(policy) => known.push(Arc::new(policy.clone())),
            Entry::Missing(name) => missing.push(name.clone()),
        }
    }
    PolicySet::new(known, missing)
}

/// The same cases each time: a failure in CI is one that a developer can have too.
fn check<S: Strategy>(cases: u32, strategy: S, property: impl Fn(S::Value) -> TestCaseResult) {
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let result = TestRunner::new_with_rng(config, rng).run(&strategy, property);
    result.unwrap_or_else(|failure| panic!("{failure}"));
}

#[test]
fn evaluate_agrees_with_the_reference() {
    let kinds = RefCell::new(BTreeMap::<&str, u32>::new());
    let reported = RefCell::new(0);
    check(CASES, (generate::request(), generate::entries()), |(request, entries)| {
        let outcome = meaning::outcome(&request, &entries);
        let verdict = judge(&request, &entries);
        agrees(&outcome, &entries, &verdict)?;
        let dry_run = dry_run_before_the_decision(&request, &entries, &verdict.decision);
        prop_assert_eq!(&verdict.dry_run, &dry_run);
        *kinds.borrow_mut().entry(kind(&outcome)).or_default() += 1;
        *reported.borrow_mut() += u32::from(!dry_run.is_empty());
        Ok(())
    });
    // Agreement about what hardly ever happens would say little.
    let (kinds, reported) = (kinds.into_inner(), reported.into_inner());
    assert_eq!(kinds.len(), 5, "{kinds:?}");
    assert_eq!(kinds.values().sum::<u32>(), CASES, "{kinds:?}");
    assert!(kinds.values().all(|&n| n >= CASES / 20), "{kinds:?}");
    assert!(reported >= CASES / 20, "{reported} cases with a dry-run policy that matches");
}

fn kind(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::DeniedBy(_) => "denied by a DENY",
        Outcome::Unknown(_) => "denied by an unknown policy",
        Outcome::NoAllowPolicy => "allowed by no policy",
        Outcome::AllowedBy(_) => "allowed by an ALLOW",
        Outcome::NotAllowed => "denied, no ALLOW matched",
    }
}

/// The same outcome, and the decision names an object that really made it so.
fn agrees(outcome: &Outcome, entries: &[Entry], verdict: &Verdict) -> TestCaseResult {
    prop_assert_eq!(verdict.allowed, outcome.allowed(), "{:?}, not {:?}", verdict, outcome);
    let agrees = match (outcome, &verdict.decision) {
        (Outcome::DeniedBy(culprits), Decision::Matched { policy, action: Action::Deny, rule })
        | (
            Outcome::AllowedBy(culprits),
            Decision::Matched { policy, action: Action::Allow, rule },
        ) => culprits.contains(&(policy.clone(), *rule)),
        (Outcome::Unknown(missing), Decision::Unknown { policy }) => missing.contains(policy),
        (Outcome::NoAllowPolicy, Decision::NoPolicy) => true,
        (Outcome::NotAllowed, Decision::NoAllowMatched { nearest }) => {
            let allow = |policy: &&Policy| !policy.dry_run && policy.action == Action::Allow;
            meaning::known(entries).find(allow).is_some_and(|policy| policy.name == *nearest)
        }
        _ => false,
    };
    prop_assert!(agrees, "{:?}, not {:?}", verdict, outcome);
    Ok(())
}

/// A DENY ends the evaluation: of the dry-run policies, only those before it are examined.
fn dry_run_before_the_decision(
    request: &Request,
    entries: &[Entry],
    decision: &Decision,
) -> Vec<PolicyName> {
    let denier = match decision {
        Decision::Matched { policy, action: Action::Deny, .. } => Some(policy),
        _ => None,
    };
    meaning::known(entries)
        .take_while(|policy| Some(&policy.name) != denier)
        .filter(|policy| policy.dry_run && !meaning::matching_rules(request, policy).is_empty())
        .map(|policy| policy.name.clone())
        .collect()
}

/// A request, some policies, and the same with one more policy somewhere among them.
fn with_one_more(
    change: impl Fn(Policy) -> Entry,
) -> impl Strategy<Value = (Request, Vec<Entry>, Vec<Entry>)> {
    let added = (generate::policy("added"), any::<prop::sample::Index>());
    (generate::request(), generate::entries(), added).prop_map(
        move |(request, before, (policy, at))| {
            let mut after = before.clone();
            after.insert(at.index(before.len() + 1), change(policy));
            (request, before, after)
        },
    )
}

#[test]
fn a_further_deny_allows_nothing() {
    let deny = |policy| Entry::Known(Policy { action: Action::Deny, dry_run: false, ..policy });
    let turned = RefCell::new(0);
    check(CASES_OF_A_CHANGE, with_one_more(deny), |(request, before, after)| {
        let (before, after) = (judge(&request, &before), judge(&request, &after));
        prop_assert!(before.allowed || !after.allowed, "{:?}, then {:?}", before, after);
        *turned.borrow_mut() += u32::from(before.allowed != after.allowed);
        Ok(())
    });
    let turned = turned.into_inner();
    assert!(turned >= CASES_OF_A_CHANGE / 20, "only {turned} of the policies denied anything");
}

#[test]
fn a_dry_run_policy_decides_nothing() {
    let dry_run = |policy| Entry::Known(Policy { dry_run: true, ..policy });
    check(CASES_OF_A_CHANGE, with_one_more(dry_run), |(request, before, after)| {
        let (before, after) = (judge(&request, &before), judge(&request, &after));
        prop_assert_eq!(before.allowed, after.allowed);
        prop_assert_eq!(before.decision, after.decision);
        Ok(())
    });
}

#[test]
fn an_unknown_policy_never_allows() {
    let missing = |policy: Policy| Entry::Missing(policy.name);
    check(CASES_OF_A_CHANGE, with_one_more(missing), |(request, _, after)| {
        let verdict = judge(&request, &after);
        prop_assert!(!verdict.allowed, "{:?}", verdict);
        Ok(())
    });
}
