//! Whose keys nodes are told, and when they are taken back.

use medes_dedup::key::KeyId;
use medes_proto::fleet::HeldKey;

use super::*;

fn of_tenant(name: &str, tenant: &str) -> FunctionSpec {
    FunctionSpec { tenant: tenant.parse().unwrap(), ..function(name) }
}

fn names(tenants: &[TenantName]) -> Vec<&str> {
    tenants.iter().map(TenantName::as_str).collect()
}

/// What is said of keys and commands, in order.
fn said(bench: &mut Bench) -> Vec<String> {
    let said = bench.actions.drain(..).filter_map(|action| match action {
        Action::Welcome { tenants, .. } => Some(format!("welcome {:?}", names(&tenants))),
        Action::TellKeys { tenants, .. } => Some(format!("tell {:?}", names(&tenants))),
        Action::ForgetKeys { tenants, .. } => Some(format!("forget {:?}", names(&tenants))),
        Action::Command { command: Command::Start { function, .. }, .. } => {
            Some(format!("start {}", function.name))
        }
        Action::Command { command: Command::Replicate { .. }, .. } => Some("copy".into()),
        _ => None,
    });
    said.collect()
}

fn knows(inventory: Inventory, tenants: &[&str]) -> Inventory {
    let key = |tenant: &&str| HeldKey { tenant: tenant.parse().unwrap(), id: KeyId(1) };
    Inventory { keys: tenants.iter().map(key).collect(), ..inventory }
}

fn two_tenants() -> Bench {
    Bench::new(Settings::default(), &[of_tenant("f", "a"), of_tenant("g", "b")])
}

#[test]
fn a_node_is_told_a_key_once_and_before_the_first_command_that_needs_it() {
    let mut bench = two_tenants();
    bench.attach("n1", 1, Inventory::default());
    assert_eq!(said(&mut bench), ["welcome []"]);
    for id in [1, 2] {
        let [f, g] = ["f", "g"].map(|name| name.parse().unwrap());
        let function = if id == 1 { f } else { g };
        let ticket = Ticket(id);
        let operation = Operation::Start { function, node: None, cold: true };
        bench.tell(Event::Asked { ticket, operation });
    }
    assert_eq!(said(&mut bench), ["tell [\"a\"]", "start f", "tell [\"b\"]", "start g"]);
    let operation = Operation::Start { function: "f".parse().unwrap(), node: None, cold: true };
    bench.tell(Event::Asked { ticket: Ticket(3), operation });
    assert_eq!(said(&mut bench), ["start f"]);
}

#[test]
fn who_connects_again_is_told_the_keys_of_what_it_has_and_no_other() {
    let mut bench = two_tenants();
    let held = report(SandboxId::of(1, 9).unwrap(), "g", SandboxState::Dedup);
    let base =
        SnapshotReport { function: "f".parse().unwrap(), ..snapshot_report(SnapshotId::new(9).unwrap()) };
    let sandbox = Inventory { sandboxes: vec![held], ..Inventory::default() };
    bench.attach("n1", 1, knows(sandbox, &["a", "b"]));
    bench.attach("n2", 1, Inventory { snapshots: vec![base], ..Inventory::default() });
    // Of a function that is not known: nobody's.
    let stranger = report(SandboxId::of(1, 10).unwrap(), "h", SandboxState::Dedup);
    bench.attach("n3", 1, Inventory { sandboxes: vec![stranger], ..Inventory::default() });
    let said = said(&mut bench);
    assert_eq!(
        said.iter().filter(|line| line.starts_with("welcome")).collect::<Vec<_>>(),
        ["welcome [\"b\"]", "welcome [\"a\"]", "welcome []"]
    );
    assert!(!said.iter().any(|line| line.starts_with("tell")), "{said:?}");
}

#[test]
fn a_key_is_taken_back_when_nothing_of_its_tenant_is_left() {
    let mut bench = two_tenants();
    let id = SandboxId::of(1, 9).unwrap();
    let held = || Inventory { sandboxes: vec![report(id, "f", SandboxState::Dedup)], ..Inventory::default() };
    let connection = bench.attach("n1", 1, held());
    bench.clear();
    bench.beat(connection, knows(held(), &["a"]));
    assert_eq!(said(&mut bench), [""; 0], "it has something of a");
    bench.tell(Event::Asked { ticket: Ticket(1), operation: Operation::Purge(id) });
    let (command, _) = bench.command();
    bench.beat(connection, knows(held(), &["a"]));
    assert_eq!(said(&mut bench), [""; 0], "it still has");
    bench.done(connection, command, Ok(Success::default()));
    bench.beat(connection, knows(Inventory::default(), &["a"]));
    assert_eq!(said(&mut bench), ["forget [\"a\"]"]);
    // It has not heard so yet, or has another one that nobody told it.
    bench.beat(connection, knows(Inventory::default(), &["a", "b"]));
    assert_eq!(said(&mut bench), ["forget [\"a\", \"b\"]"]);
    bench.beat(connection, Inventory::default());
    assert_eq!(said(&mut bench), [""; 0]);
}

#[test]
fn a_tenant_that_comes_again_has_a_key_that_has_to_be_told_again() {
    let mut bench = two_tenants();
    bench.attach("n1", 1, Inventory::default());
    let start = |bench: &mut Bench, ticket| {
        let operation = Operation::Start { function: "f".parse().unwrap(), node: None, cold: true };
        bench.tell(Event::Asked { ticket: Ticket(ticket), operation });
    };
    start(&mut bench, 1);
    bench.clear();
    bench.tell(Event::Removed { function: "f".parse().unwrap() });
    bench.tell(Event::TenantDeleted { tenant: "a".parse().unwrap() });
    assert_eq!(said(&mut bench), ["forget [\"a\"]"]);
    bench.tell(Event::TenantDeleted { tenant: "b".parse().unwrap() });
    assert_eq!(said(&mut bench), [""; 0], "it had nothing here");
    bench.tell(Event::Applied { function: Box::new(of_tenant("f", "a")), revision: 2 });
    start(&mut bench, 2);
    assert_eq!(said(&mut bench), ["tell [\"a\"]", "start f"]);
}

#[test]
fn what_a_function_had_as_another_tenants_brings_nobody_a_key() {
    let mut bench = two_tenants();
    let held = || Inventory {
        sandboxes: vec![report(SandboxId::of(1, 9).unwrap(), "f", SandboxState::Warm)],
        ..Inventory::default()
    };
    let connection = bench.attach("n1", 1, held());
    bench.clear();
    // Nobody wants the sandbox any more; until it is gone nothing but its end is to be done to it.
    bench.tell(Event::Applied { function: Box::new(of_tenant("f", "c")), revision: 2 });
    bench.beat(connection, knows(held(), &["a"]));
    assert_eq!(said(&mut bench), ["forget [\"a\"]"]);
}
