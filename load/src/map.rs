//! Which functions stand for those of a trace.

use std::{fmt, str::FromStr};

use medes_proto::ids::FunctionName;

use crate::trace::Trace;

/// `a=html`: function a of the trace is html. `html` alone: it takes its turn with all that are not named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    /// As the trace calls it, or the beginning of that if no other begins so.
    of: Option<String>,
    to: FunctionName,
}

/// A mapping that makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// Not a name of a function.
    #[error("{0:?} is not FUNCTION or TRACE-FUNCTION=FUNCTION")]
    Text(String),
    /// The trace has no such function.
    #[error("no function of the trace is called {0:?}")]
    Unknown(String),
    /// It has several.
    #[error("several functions of the trace begin with {0:?}")]
    Several(String),
    /// No function would be asked for.
    #[error("no function is named that requests could go to")]
    Nothing,
}

impl FromStr for Mapping {
    type Err = MapError;

    fn from_str(text: &str) -> Result<Self, MapError> {
        let bad = |_| MapError::Text(text.chars().take(64).collect());
        match text.split_once('=') {
            Some(("", _)) => Err(MapError::Text(text.into())),
            Some((of, to)) => Ok(Self { of: Some(of.into()), to: to.parse().map_err(bad)? }),
            None => Ok(Self { of: None, to: text.parse().map_err(bad)? }),
        }
    }
}

impl fmt::Display for Mapping {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.of {
            Some(of) => write!(out, "{of}={}", self.to),
            None => write!(out, "{}", self.to),
        }
    }
}

/// For each function of the trace the one that stands for it; `None`: its requests are left out.
pub fn resolve(mappings: &[Mapping], trace: &Trace) -> Result<Vec<Option<FunctionName>>, MapError> {
    let mut targets = vec![None; trace.functions.len()];
    for Mapping { of, to } in mappings {
        if let Some(of) = of {
            targets[position(of, trace)?] = Some(to.clone());
        }
    }
    let turns: Vec<&FunctionName> =
        mappings.iter().filter(|one| one.of.is_none()).map(|one| &one.to).collect();
    let open = targets.iter_mut().filter(|target| target.is_none());
    open.zip(turns.into_iter().cycle()).for_each(|(target, to)| *target = Some(to.clone()));
    if targets.iter().all(Option::is_none) {
        return Err(MapError::Nothing);
    }
    Ok(targets)
}

fn position(of: &str, trace: &Trace) -> Result<usize, MapError> {
    let named = |wanted: &dyn Fn(&str) -> bool| {
        let all = trace.functions.iter().enumerate();
        all.filter(|(_, function)| wanted(&function.name)).map(|(at, _)| at).collect::<Vec<_>>()
    };
    let exactly = named(&|name| name == of);
    let found = if exactly.is_empty() { named(&|name| name.starts_with(of)) } else { exactly };
    match found[..] {
        [at] => Ok(at),
        [] => Err(MapError::Unknown(of.into())),
        _ => Err(MapError::Several(of.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapped(words: &str) -> Result<Vec<String>, MapError> {
        let trace = Trace::parse("name,avg_ms,m1\nabc,1,1\nabd,1,1\nx,1,1\nab,1,1\n").unwrap();
        let mappings = words.split_whitespace().map(str::parse).collect::<Result<Vec<Mapping>, _>>()?;
        let targets = resolve(&mappings, &trace)?;
        Ok(targets.into_iter().map(|target| target.map_or("-".into(), |name| name.to_string())).collect())
    }

    #[test]
    fn named_ones_first_and_the_rest_in_turns() {
        assert_eq!(mapped("html auth").unwrap(), ["html", "auth", "html", "auth"]);
        assert_eq!(mapped("x=html").unwrap(), ["-", "-", "html", "-"]);
        assert_eq!(mapped("x=html auth image").unwrap(), ["auth", "image", "html", "auth"]);
        assert_eq!(mapped("abc=html ab=auth").unwrap(), ["html", "-", "-", "auth"]);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        assert_eq!(mapped("y=html"), Err(MapError::Unknown("y".into())));
        assert_eq!(mapped("abx=html"), Err(MapError::Unknown("abx".into())));
        let trace = Trace::parse("name,avg_ms,m1\nabc,1,1\nabd,1,1\n").unwrap();
        assert_eq!(resolve(&["ab=html".parse().unwrap()], &trace), Err(MapError::Several("ab".into())));
        assert_eq!(mapped(""), Err(MapError::Nothing));
        for bad in ["=html", "a=", "a=Html", "No Name"] {
            assert!(bad.parse::<Mapping>().is_err(), "{bad}");
        }
        assert_eq!("a=html".parse::<Mapping>().unwrap().to_string(), "a=html");
    }
}
