//! Carries out one cell: everything in order, the fault, the act going on, everything in order again.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use crate::{
    cell::{Act, Cell, Expected, Fault, Victim},
    census::Census,
    cluster::{Cluster, OPERATION, RECOVERY},
    crowd::Crowd,
    http::Asked,
    judge::{self, Lives, Moments},
    report::Outcome,
    strike::{self, Step},
    subject::{self, Done, Subject},
};

/// Who else is there.
pub(crate) const CROWD: &str = "crowd";
/// How long things go on undisturbed before something happens.
const CALM: Duration = Duration::from_millis(300);
/// Trimming has taken the first pages of a sandbox by then.
const FIRST_STEP: Duration = Duration::from_secs(2);
const AGAIN: Duration = Duration::from_millis(200);
/// Who has just changed its node is known again by the next report but one.
const GONE: Duration = Duration::from_secs(2);
/// A connection that was cut off may try again only so much later, relative to how long it was.
const CATCH_UP: u32 = 2;

/// What there was to see.
struct Seen {
    done: Done,
    took: Duration,
    moments: Moments,
    /// What was done to the bytes on the way, or that the step was come to.
    happened: bool,
    own: Vec<Asked>,
}

/// Carries it out. An error is one of what is around it: it never came to be judged.
pub(crate) fn run(cluster: &mut Cluster, cell: &Cell, number: usize, lives: &mut Lives) -> Result<Outcome> {
    let mut own = Vec::new();
    let prepared = subject::prepare(cluster, cell, format!("f{number}"), &mut own);
    let subject = prepared.with_context(|| format!("prepare\n{}", cluster.tails()))?;
    let crowd = Crowd::start(&cluster.desk, &format!("{CROWD}/count"));
    thread::sleep(CALM);
    let seen = happen(cluster, cell, &subject, own);
    let recovered = seen.as_ref().ok().map(|seen| recover(cluster, cell, &subject, seen.moments));
    let others = crowd.end()?;
    let mut seen = seen?;
    let recovered = recovered.context("it did not happen")?;
    let expected = cell.expected();
    let mut wrong = Vec::new();
    if !seen.happened {
        wrong.push("it did not happen: the step was not come to, or no byte was harmed".to_owned());
    }
    let took = match recovered {
        Ok(took) => took,
        Err(error) => {
            wrong.push(format!("no recovery: {error:#}"));
            RECOVERY
        }
    };
    let kept = kept(cluster, &subject, &mut seen.own)?;
    wrong.extend(of_the_act(cell, &expected, &seen));
    if expected.kept && !kept {
        wrong.push("the subject is lost, and nothing of it was hit".into());
    }
    wrong.extend(judge::complaints(cell, &expected, lives, (&seen.own, &others), seen.moments));
    wrong.extend(twice(cluster));
    clean_up(cluster, &subject)?;
    let unanswered = others.iter().filter(|asked| asked.answer().is_none()).map(Asked::word).collect();
    Ok(Outcome::new(
        cell,
        &seen.done,
        (seen.took, took),
        (kept, subject.before.is_some()),
        (others.len(), unanswered),
        wrong,
    ))
}

/// The act, and the fault in the middle of it.
fn happen(cluster: &mut Cluster, cell: &Cell, subject: &Subject, mut own: Vec<Asked>) -> Result<Seen> {
    let fails = cell.fault == Fault::Fail;
    let step = cell.step.map(|step| Step::arm(cluster, cell.at, step, fails)).transpose()?;
    let harmed = cluster.between.harmed();
    if step.is_none() && cell.act != Act::Serve {
        strike::strike(cluster, cell, subject.sandbox())?;
    }
    let (desk, about, whose) = (cluster.desk.clone(), *cell, subject.clone());
    let begun = Instant::now();
    let mut struck = begun;
    let acting = thread::spawn(move || {
        let done = act(&desk, &about, &whose);
        (done, begun.elapsed())
    });
    let mut happened = true;
    match &step {
        Some(step) => {
            happened = step.reached(|| acting.is_finished());
            struck = Instant::now();
            subject::anywhere(&cluster.desk)?;
            if happened && !fails {
                strike::strike(cluster, cell, subject.sandbox())?;
            }
            step.release();
            if cell.fault == Fault::Kill(Victim::Criu) {
                // A dump has one of its own, others take one that was waiting.
                happened &= strike::hunt_criu(cluster, cell.at)? || cell.act != Act::Dedup;
            }
        }
        None if cell.act == Act::Serve => {
            thread::sleep(CALM);
            struck = Instant::now();
            strike::strike(cluster, cell, subject.sandbox())?;
        }
        None => {}
    }
    thread::sleep(Duration::from_secs(cell.fault.seconds()));
    let lasts = matches!(cell.fault, Fault::Delay | Fault::Flip | Fault::Throttle | Fault::FullScratch);
    if !lasts {
        strike::mend(cluster, cell)?;
    }
    let mut mended = Instant::now();
    let (done, took) = acting.join().ok().context("the act panicked")?;
    let (done, more) = done?;
    if lasts {
        strike::mend(cluster, cell)?;
        mended = Instant::now();
    }
    subject::anywhere(&cluster.desk).ok();
    if matches!(cell.fault, Fault::Delay | Fault::Flip) {
        happened = cluster.between.harmed() > harmed;
    }
    own.extend(done.asked().cloned());
    own.extend(more);
    Ok(Seen { done, took, moments: Moments { struck, mended }, happened, own })
}

/// The act; for one that serves, requests before, while and after it happens.
fn act(desk: &crate::desk::Desk, cell: &Cell, subject: &Subject) -> Result<(Done, Vec<Asked>)> {
    let path = match cell.fault {
        Fault::Hoard => "hoard?mib=400",
        Fault::Litter => "litter?mib=400",
        _ => "count?seconds=0.4",
    };
    if cell.act == Act::Serve {
        // Long enough that the fault comes while it is inside.
        let first = desk.post(&format!("{}/{path}", subject.function), subject.sandbox());
        return Ok((Done::Asked(first), Vec::new()));
    }
    if cell.act == Act::Trim {
        // More is taken only after it was used again, and not for a while where that called a step off.
        thread::sleep(FIRST_STEP);
        let first = desk.post(&format!("{}/{path}", subject.function), subject.sandbox());
        return Ok((subject::act(desk, cell, subject)?, vec![first]));
    }
    let done = subject::act(desk, cell, subject)?;
    if cell.fault != Fault::Clock {
        return Ok((done, Vec::new()));
    }
    // There, and back to where time is behind.
    let sandbox = subject.sandbox().context("no sandbox")?;
    let mut more = vec![desk.post(&format!("{}/count", subject.function), Some(sandbox))];
    desk.ask(&["dedup", sandbox])?;
    desk.ask(&["move", sandbox, "--node", &desk.node(crate::hosts::Place::A)])?;
    more.push(desk.post(&format!("{}/count", subject.function), Some(sandbox)));
    let lost = more.iter().find(|asked| asked.answer().is_none_or(|answer| answer.sandbox != sandbox));
    ensure!(lost.is_none(), "it was lost on its way: {lost:?}");
    Ok((done, more))
}

/// Waits until both nodes are there and the function is answered; how long that took since all was mended.
fn recover(cluster: &mut Cluster, cell: &Cell, subject: &Subject, moments: Moments) -> Result<Duration> {
    let within = RECOVERY + Duration::from_secs(cell.fault.seconds()) * CATCH_UP;
    let begun = Instant::now();
    let answered = loop {
        cluster.start_what_ended()?;
        if cluster.whole_within(Duration::ZERO) {
            let asked = cluster.desk.post(&format!("{}/ping", subject.function), None);
            if matches!(&asked.end, crate::http::End::Answered(_)) {
                break asked;
            }
        }
        ensure!(begun.elapsed() < within, "not within {within:?}\n{}", cluster.tails());
        thread::sleep(Duration::from_millis(50));
    };
    let since = answered.at + answered.took;
    Ok(since.saturating_duration_since(moments.mended))
}

/// Whether the subject goes on where it was. As long as it is somewhere, it is asked again: it may just be worked on.
fn kept(cluster: &Cluster, subject: &Subject, own: &mut Vec<Asked>) -> Result<bool> {
    let Some(before) = &subject.before else { return Ok(false) };
    let path = format!("{}/count", subject.function);
    let (begun, mut gone_since) = (Instant::now(), None);
    loop {
        let asked = cluster.desk.post(&path, Some(&before.sandbox));
        own.push(asked.clone());
        let (answered, late) = (asked.answer(), begun.elapsed() > RECOVERY);
        if let Some(answer) = answered.filter(|answer| answer.sandbox == before.sandbox) {
            return Ok(answer.life == before.life && answer.count > before.count);
        }
        let gone = answered.is_some() && cluster.desk.state(&before.sandbox) == "gone";
        gone_since = gone.then(|| gone_since.unwrap_or_else(Instant::now));
        if answered.is_some() && (late || gone_since.is_some_and(|since| since.elapsed() > GONE)) {
            return Ok(false);
        }
        ensure!(!late, "nobody answers any more");
        thread::sleep(AGAIN);
    }
}

/// What is wrong with the act itself.
fn of_the_act(cell: &Cell, expected: &Expected, seen: &Seen) -> Vec<String> {
    let mut wrong = Vec::new();
    let most = OPERATION + Duration::from_secs(cell.fault.seconds()) * CATCH_UP;
    if seen.took > most {
        wrong.push(format!("it took {:.1} s, and its limits allow {most:?}", seen.took.as_secs_f64()));
    }
    if let Some(asked) = seen.done.asked().filter(|asked| asked.answer().is_none()) {
        if expected.answered {
            wrong.push(format!("the caller was told {:?}, and no sandbox had seen the request", asked.end));
        } else if !judge::is_excused(cell, expected, asked, seen.moments) {
            wrong.push(format!("the caller was told {:?}", asked.end));
        }
    }
    wrong
}

/// Sandboxes that have processes on two nodes.
fn twice(cluster: &Cluster) -> Vec<String> {
    let nodes = Census::take().nodes_of_sandboxes(&cluster.desk.mark);
    let twice = nodes.into_iter().filter(|(_, nodes)| nodes.len() > 1);
    twice.map(|(sandbox, nodes)| format!("{sandbox} runs on {nodes:?}")).collect()
}

/// Nothing of the cell is left for the next one.
fn clean_up(cluster: &Cluster, subject: &Subject) -> Result<()> {
    subject::give_up_all(&cluster.desk, &subject.function)?;
    cluster.desk.ask(&["function", "rm", &subject.function])?;
    Ok(())
}
