//! A host that is replaced while the guest runs, and one that takes lines as it likes.

mod common;

use std::{collections::HashSet, time::Duration};

use common::{Behaviour, Fact, ONE_GUEST, TOKEN, World, lines};
use tokio::task::LocalSet;
use volant_proto::agent::v1::{going_down::Reason, report_request::Report};

async fn alone<F: Future>(test: F) -> F::Output {
    let _one = ONE_GUEST.lock().await;
    LocalSet::new().run_until(test).await
}

#[tokio::test]
async fn a_replaced_host_is_greeted_with_the_token_and_hears_on() {
    alone(async {
        let mut world = World::begin(Behaviour::shell(
            "trap 'exit 7' TERM; echo ready; while :; do sleep 0.02; done",
        ));
        let before = world.until_line("ready").await;
        let first = hellos(&before);
        assert_eq!(first.len(), 1);
        assert!(first[0].1.is_empty());
        for _ in 0..3 {
            world.break_connections();
            let facts = world.until(|fact| matches!(fact, Fact::Watching)).await;
            let again = hellos(&facts);
            assert!(!again.is_empty(), "{facts:?}");
            for (boot, token) in again {
                assert_eq!((boot, token.as_slice()), (first[0].0.clone(), TOKEN));
            }
            world.until(|fact| matches!(fact, Fact::Heartbeat(_))).await;
        }
        world.shut_down(Duration::from_secs(20)).await;
        let (facts, reason, _) = world.until_the_end().await;
        assert_eq!(common::exit(&facts), Some((7, 0)));
        assert_eq!(reason, Reason::Requested);
    })
    .await;
}

fn hellos(facts: &[Fact]) -> Vec<(String, Vec<u8>)> {
    facts
        .iter()
        .filter_map(|fact| match fact {
            Fact::Hello(hello) => Some((hello.boot_id.clone(), hello.token.clone())),
            _ => None,
        })
        .collect()
}

#[tokio::test]
async fn a_report_that_met_a_broken_connection_is_told_again() {
    alone(async {
        let mut world = World::begin(Behaviour::shell(
            "echo ready; read x </dev/null; sleep 0.3; exit 9",
        ));
        world.until_line("ready").await;
        // From here on until the agent has said hello by a new connection, nothing is taken.
        world.break_connections();
        let (facts, reason, _) = world.until_the_end().await;
        assert_eq!(common::exit(&facts), Some((9, 0)));
        assert_eq!(reason, Reason::WorkloadExited);
    })
    .await;
}

/// Each case has a runtime of its own: with it ends its reaper, which would take the next one's children.
async fn lines_come_once_and_in_their_order(lines_per_stream: u64) {
    alone(async {
        let mut behaviour = Behaviour::shell("seq 1 200");
        behaviour.lines_per_stream = lines_per_stream;
        let mut world = World::begin(behaviour);
        let (facts, _, _) = world.until_the_end().await;
        let expected: Vec<_> = (1..=200).map(|number| number.to_string()).collect();
        assert_eq!(lines(&facts), expected);
    })
    .await;
}

#[tokio::test]
async fn lines_come_once_to_a_host_that_takes_one_by_a_stream() {
    lines_come_once_and_in_their_order(1).await;
}

#[tokio::test]
async fn lines_come_once_to_a_host_that_takes_some_by_a_stream() {
    lines_come_once_and_in_their_order(7).await;
}

#[tokio::test]
async fn no_line_is_lost_with_a_connection_that_breaks() {
    alone(async {
        let mut world = World::begin(Behaviour::shell(
            "for i in $(seq 1 50); do echo $i; sleep 0.02; done; echo over; sleep 300",
        ));
        let mut facts = world.until_line("5").await;
        for line in ["15", "25", "35"] {
            world.break_connections();
            facts.extend(world.until_line(line).await);
        }
        facts.extend(world.until_line("over").await);
        let heard: HashSet<_> = lines(&facts).into_iter().collect();
        let lost: Vec<_> = (1..=50)
            .map(|number| number.to_string())
            .filter(|line| !heard.contains(line))
            .collect();
        assert_eq!(lost, [""; 0]);
        world.shut_down(Duration::from_secs(5)).await;
        let (facts, _, _) = world.until_the_end().await;
        let told = |fact: &&Fact| matches!(fact, Fact::Report(Report::WorkloadExited(_)));
        assert_eq!(facts.iter().filter(told).count(), 1);
    })
    .await;
}
