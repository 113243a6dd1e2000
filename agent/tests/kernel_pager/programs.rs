//! Real programs that are parked over and over: a server with children that were forked before, an in-memory store, and one that makes
//! machine code while it runs. Each knows what its data add up to, and how often it was asked.

use std::collections::BTreeMap;
use std::path::Path;

use medes_agent::sandbox::LaunchSpec;

use crate::desk::{Guest, at_desk};
use crate::node::{LIMIT, python};
use crate::runner::Test;

pub(crate) const TESTS: &[Test] = &[
    ("a_server_of_many_processes_answers_as_before", a_server_of_many_processes_answers_as_before),
    ("an_in_memory_store_keeps_its_data", an_in_memory_store_keeps_its_data),
    ("a_program_that_compiles_while_it_runs_answers_as_before", a_program_that_compiles_answers_as_before),
];

/// Three workers with data of their own, forked before anything is taken, that take requests from one socket.
const PREFORK: &str = "
import os, socket
server = socket.create_server(('127.0.0.1', int(os.environ['PORT'])), backlog=16)
worker = 0
while worker < 3 and os.fork(): worker += 1
if worker == 3:
    while True: os.wait()
data = [str(i * (worker + 2)) * 10 for i in range(20000)]
asked = 0
while True:
    client, _ = server.accept()
    client.recv(65536)
    asked += 1
    data[asked % 20000] = data[asked % 20000][::-1][::-1]
    body = f'{worker} {asked} {sum(map(len, data))} {hash(tuple(map(len, data)))}'.encode()
    client.sendall(b'HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\nConnection: close\\r\\n\\r\\n' % len(body) + body)
    client.close()
";

/// Redis behind a small front: the sum of a part of all values, the number of requests kept in the store, and a value written.
const STORE: &str = "
import hashlib, os, random, socket, subprocess, time
path = '/tmp/store.sock'
subprocess.Popen(['redis-server', '--port', '0', '--unixsocket', path, '--save', '', '--appendonly', 'no', '--dir', '/tmp', '--logfile', '/dev/null'])
link = None
while link is None:
    try:
        link = socket.socket(socket.AF_UNIX)
        link.connect(path)
    except OSError:
        link = None
        time.sleep(0.02)
reader = link.makefile('rb')
def ask(*words):
    words = [w if isinstance(w, bytes) else str(w).encode() for w in words]
    link.sendall(b'*%d\\r\\n' % len(words) + b''.join(b'$%d\\r\\n%s\\r\\n' % (len(w), w) for w in words))
    line = reader.readline()
    assert line[:1] in b'+:$', line
    if line[:1] != b'$': return line[1:-2].decode()
    return reader.read(int(line[1:]) + 2)[:-2]
made = random.Random(7)
for key in range(4000): ask('SET', key, made.randbytes(made.randrange(100, 1500)))
server = socket.create_server(('127.0.0.1', int(os.environ['PORT'])))
while True:
    client, _ = server.accept()
    client.recv(65536)
    asked = int(ask('INCR', 'asked'))
    ask('SET', f'written:{asked}', bytes([asked % 251]) * 3000)
    sums = hashlib.sha256()
    for key in range(asked % 4, 4000, 4): sums.update(ask('GET', key))
    assert all(ask('GET', f'written:{one}') == bytes([one % 251]) * 3000 for one in range(1, asked + 1))
    body = f'{asked % 4} {asked} {sums.hexdigest()}'.encode()
    client.sendall(b'HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\nConnection: close\\r\\n\\r\\n' % len(body) + body)
    client.close()
";

/// Functions that become hot, are compiled, and are compiled again for other types; objects that come and go.
const COMPILED: &str = "
const http = require('http');
const kept = new Map();
for (let i = 0; i < 20000; i++) kept.set('key' + i, { n: i, text: ('x' + i).repeat(3) });
function mix(a, b) { return (Math.imul(a ^ b, 0x9e3779b1) >>> 0); }
function sum(make) { let h = 1; for (const one of kept.values()) h = mix(h, make(one)); return h; }
let asked = 0;
http.createServer((request, response) => {
    asked++;
    const kinds = [one => one.n, one => one.text.length, one => one.n * 0.5 + one.text.charCodeAt(1)];
    const rubbish = Array.from({ length: 2000 }, (_, i) => ({ i, text: 'y'.repeat(i % 50) }));
    response.end(`${asked % 3} ${asked} ${sum(kinds[asked % 3])} ${rubbish.length}`);
}).listen(process.env.PORT, '127.0.0.1');
";

fn has(program: &str) -> bool {
    let is_there =
        ["/usr/bin", "/usr/local/bin", "/bin"].iter().any(|folder| Path::new(folder).join(program).exists());
    if !is_there {
        println!("SKIPPED a test of {program}: it is not installed");
    }
    is_there
}

/// Asks it twice between any two parks. `answers`: the first word says what is answered, the second how often that one was asked, and
/// the rest does not change.
async fn over_and_over(
    desk: &mut crate::desk::Desk,
    guest: &mut Guest,
    cycles: usize,
) -> BTreeMap<String, (u64, String)> {
    let mut answers: BTreeMap<String, (u64, String)> = BTreeMap::new();
    for cycle in 0..cycles {
        for _request in 0..2 {
            let answer = guest.ask("/").await;
            let mut words = answer.splitn(3, ' ');
            let mut word = || words.next().unwrap_or_else(|| panic!("cycle {cycle}: {answer:?}"));
            let (what, asked, rest) = (word().to_owned(), word().parse::<u64>().unwrap(), word().to_owned());
            match answers.get(&what) {
                Some((before, same)) => {
                    assert!(asked > *before, "cycle {cycle}: {answer}, and {before} before");
                    assert_eq!(rest, *same, "cycle {cycle}, {what}");
                }
                None => assert!(asked < 12, "cycle {cycle}: {answer}"),
            }
            answers.insert(what, (asked, rest));
        }
        desk.resident_percent = [0, 10, 50][cycle % 3];
        desk.park(guest).await;
        guest.unpark().await;
        if cycle % 4 == 1 {
            guest.look();
        }
    }
    answers
}

fn run(spec: &LaunchSpec, cycles: usize, kinds: usize) {
    at_desk(async |mut desk| {
        let mut guest = desk.start("s1", spec).await;
        let answers = over_and_over(&mut desk, &mut guest, cycles).await;
        println!(
            "{:?}, {:?}",
            guest.paged.as_ref().unwrap().counts(),
            answers.values().map(|(asked, _)| asked).collect::<Vec<_>>()
        );
        assert_eq!(answers.len(), kinds, "{answers:?}");
        guest.housing.remove().await.unwrap();
    });
}

fn a_server_of_many_processes_answers_as_before() {
    // Which worker takes a request is the kernel's choice: all of them have had one after so many.
    run(&python(PREFORK), 60, 3);
}

fn an_in_memory_store_keeps_its_data() {
    if has("redis-server") {
        run(&python(STORE), 100, 4);
    }
}

fn a_program_that_compiles_answers_as_before() {
    if has("node") {
        let command = ["node", "-e", COMPILED].map(str::to_owned).to_vec();
        run(&LaunchSpec { ready_timeout: LIMIT, ..LaunchSpec::new("compiled", command, 8080) }, 60, 3);
    }
}
