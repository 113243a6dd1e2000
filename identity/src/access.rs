//! Who may call what: the one table. What is not in it nobody may call.

use crate::identity::Role;

/// A door of the cluster: who opens it, who may come in, and what is spoken there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// The controller's gRPC port: Control, Fleet, Registry, Tenants and Tokens.
    Control,
    /// An agent's gRPC port: Node.
    Node,
    /// An agent's base pages.
    Pages,
}

impl Service {
    /// Whose door it is.
    pub const fn holders(self) -> &'static [Role] {
        match self {
            Self::Control => CONTROLLER,
            Self::Node | Self::Pages => AGENTS,
        }
    }

    /// Who gets in at all. Of gRPC, what each may call is decided call by call.
    pub const fn callers(self) -> &'static [Role] {
        match self {
            Self::Control => &[Role::Agent, Role::Operator, Role::Invoker],
            Self::Node => &[Role::Controller, Role::Agent],
            Self::Pages => &[Role::Agent],
        }
    }

    /// What TLS is told is spoken (ALPN), so that nobody is led to another door than they knocked at.
    pub(crate) const fn protocol(self) -> &'static [u8] {
        match self {
            Self::Control | Self::Node => b"h2",
            Self::Pages => b"medes-pages",
        }
    }
}

const AGENTS: &[Role] = &[Role::Agent];
const CONTROLLER: &[Role] = &[Role::Controller];
const OPERATORS: &[Role] = &[Role::Operator];
const INVOKERS: &[Role] = &[Role::Operator, Role::Invoker];

/// Paths of all methods, and who may call them.
const METHODS: &[(&str, &[Role])] = &[
    ("/medes.v1.Control/Accounting", OPERATORS),
    ("/medes.v1.Control/ApplyFunction", OPERATORS),
    ("/medes.v1.Control/DedupSandbox", OPERATORS),
    ("/medes.v1.Control/Explain", OPERATORS),
    ("/medes.v1.Control/GetPolicy", OPERATORS),
    ("/medes.v1.Control/Heat", OPERATORS),
    ("/medes.v1.Control/InvokeFunction", INVOKERS),
    ("/medes.v1.Control/ListFunctions", OPERATORS),
    ("/medes.v1.Control/ListNodes", OPERATORS),
    ("/medes.v1.Control/ListSandboxes", OPERATORS),
    ("/medes.v1.Control/MakeBase", OPERATORS),
    ("/medes.v1.Control/MoveSandbox", OPERATORS),
    ("/medes.v1.Control/PurgeSandbox", OPERATORS),
    ("/medes.v1.Control/RemoveFunction", OPERATORS),
    ("/medes.v1.Control/RestoreSandbox", OPERATORS),
    ("/medes.v1.Control/SandboxLogs", OPERATORS),
    ("/medes.v1.Control/SetPolicy", OPERATORS),
    ("/medes.v1.Control/SetStanding", OPERATORS),
    ("/medes.v1.Control/StartSandbox", OPERATORS),
    ("/medes.v1.Control/Trace", OPERATORS),
    ("/medes.v1.Fleet/Attach", AGENTS),
    ("/medes.v1.Node/Account", CONTROLLER),
    ("/medes.v1.Node/ForgetTenant", CONTROLLER),
    ("/medes.v1.Node/GiveUp", AGENTS),
    ("/medes.v1.Node/Heat", CONTROLLER),
    ("/medes.v1.Node/Invoke", CONTROLLER),
    ("/medes.v1.Node/Logs", CONTROLLER),
    ("/medes.v1.Node/PageAccess", AGENTS),
    ("/medes.v1.Node/ReadImage", AGENTS),
    ("/medes.v1.Node/ReadLayout", AGENTS),
    ("/medes.v1.Registry/Acquire", AGENTS),
    ("/medes.v1.Registry/Locate", AGENTS),
    ("/medes.v1.Registry/Lookup", AGENTS),
    ("/medes.v1.Registry/Register", AGENTS),
    ("/medes.v1.Tenants/Delete", OPERATORS),
    ("/medes.v1.Tenants/List", OPERATORS),
    ("/medes.v1.Tokens/Create", OPERATORS),
    ("/medes.v1.Tokens/List", OPERATORS),
    ("/medes.v1.Tokens/Revoke", OPERATORS),
];

/// Whether a role may call the method at this path.
pub fn may_call(role: Role, path: &str) -> bool {
    METHODS.iter().any(|(method, roles)| *method == path && roles.contains(&role))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Every method of every service, as the wire has it.
    fn methods() -> BTreeSet<String> {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../proto/proto");
        let files = std::fs::read_dir(format!("{folder}/medes/v1")).unwrap();
        let names = files.map(|file| format!("medes/v1/{}", file.unwrap().file_name().to_str().unwrap()));
        let compiled = protox::compile(names, [folder]).unwrap();
        let mut methods = BTreeSet::new();
        for file in compiled.file {
            for service in &file.service {
                let path = format!("/{}.{}", file.package(), service.name());
                methods.extend(service.method.iter().map(|method| format!("{path}/{}", method.name())));
            }
        }
        methods
    }

    #[test]
    fn every_method_of_the_wire_has_its_line() {
        let table: BTreeSet<String> = METHODS.iter().map(|(path, _)| (*path).to_owned()).collect();
        assert_eq!(table, methods());
        assert_eq!(table.len(), METHODS.len(), "a method stands there twice");
    }

    #[test]
    fn what_is_not_in_the_table_nobody_may_call() {
        for role in Role::ALL {
            for path in ["", "/", "/medes.v1.Control", "/medes.v1.Control/", "/medes.v1.Control/Shutdown"] {
                assert!(!may_call(role, path), "{role} {path}");
            }
            assert!(!may_call(role, "/medes.v1.control/listnodes"));
        }
    }

    #[test]
    fn who_may_call_gets_in_at_the_door_and_nobody_comes_in_for_nothing() {
        let door = |path: &str| if path.contains(".Node/") { Service::Node } else { Service::Control };
        for (path, roles) in METHODS {
            assert!(roles.iter().all(|role| door(path).callers().contains(role)), "{path}");
            assert!(!roles.is_empty(), "{path}");
        }
        for service in [Service::Control, Service::Node] {
            for role in service.callers() {
                let something =
                    METHODS.iter().any(|(path, roles)| door(path) == service && roles.contains(role));
                assert!(something, "{role} has nothing to do at {service:?}");
            }
        }
    }

    #[test]
    fn an_invoker_invokes_and_an_agent_does_not_operate() {
        let of = |role| METHODS.iter().filter(move |(path, _)| may_call(role, path)).map(|(path, _)| *path);
        assert_eq!(of(Role::Invoker).collect::<Vec<_>>(), ["/medes.v1.Control/InvokeFunction"]);
        assert!(of(Role::Agent).all(|path| !path.contains(".Control/")));
        let operate = [".Control/", ".Tenants/", ".Tokens/"];
        assert!(of(Role::Operator).all(|path| operate.iter().any(|service| path.contains(service))));
        assert!(of(Role::Controller).all(|path| path.contains(".Node/")));
    }
}
