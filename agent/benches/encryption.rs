//! What encryption costs an image on its way to another node: beside a copy, and beside the hash that was counted over it before.
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on stops")]
#![allow(missing_docs, reason = "criterion's macros write functions without any")]

use std::{hint::black_box, time::Duration};

use criterion::{BatchSize::LargeInput, Criterion, Throughput, criterion_group, criterion_main};
use medes_agent::moving::encryption::{Decryptor, Encryptor};
use medes_dedup::key::{Challenge, DomainKey};
use medes_proto::{
    ids::{FunctionName, SandboxId},
    limits::IMAGE_PART_BYTES_MAX,
    moving::{ImageRequest, OfferedSandbox},
};

fn one_part(criterion: &mut Criterion) {
    let key = DomainKey::from_bytes([7; 32]);
    let function: FunctionName = "f".parse().unwrap();
    let offered = OfferedSandbox { sandbox: SandboxId::new(7).unwrap(), to: "n2".parse().unwrap() };
    let request = ImageRequest { offered, challenge: Challenge([1; 32]) };
    let plain: Vec<u8> = (0..IMAGE_PART_BYTES_MAX).map(|at| (at * 7 + at / 251) as u8).collect();
    let mut group = criterion.benchmark_group("one part of an image");
    group.throughput(Throughput::Bytes(plain.len() as u64)).measurement_time(Duration::from_secs(2));
    group.bench_function("copied", |bench| bench.iter(|| black_box(&plain).to_vec()));
    group.bench_function("hashed", |bench| bench.iter(|| blake3::hash(black_box(&plain))));
    let (mut encryptor, _) = Encryptor::new(&key, &function, &request).unwrap();
    group.bench_function("encrypted", |bench| bench.iter(|| encryptor.encrypt(black_box(&plain), false)));
    let (mut encryptor, salt) = Encryptor::new(&key, &function, &request).unwrap();
    let part = encryptor.encrypt(&plain, false).unwrap();
    group.bench_function("decrypted", |bench| {
        // A copy of its own, as if it had come over the network.
        let fresh = || {
            let decryptor = Decryptor::new(&key, &function, &salt, &request).unwrap();
            (decryptor, medes_proto::moving::EncryptedPart { bytes: part.bytes.to_vec().into(), last: false })
        };
        bench.iter_batched(fresh, |(mut decryptor, part)| decryptor.decrypt(part).unwrap(), LargeInput);
    });
}

criterion_group!(benches, one_part);
criterion_main!(benches);
