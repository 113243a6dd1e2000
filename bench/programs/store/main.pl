# store: Redis with generated values, asked over a Unix socket. Nothing is saved to disk.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/../runtime";
use Medes;
use IO::Socket::UNIX;

my $seed = Medes::seed();
my $socket = '/tmp/store.sock';
my $pid = fork() // die "fork: $!";
if ($pid == 0) {
    exec 'redis-server', '--port', '0', '--unixsocket', $socket, '--save', '', '--appendonly', 'no',
        '--daemonize', 'no', '--logfile', '/dev/null', '--dir', '/tmp' or die "start redis-server: $!";
}

sub connected {
    for (1 .. 600) {
        my $store = IO::Socket::UNIX->new(Peer => $socket);
        return $store if $store;
        select(undef, undef, undef, 0.05);
    }
    die "redis-server does not listen";
}

# One command as the protocol has it.
sub command { return '*' . @_ . "\r\n" . join('', map { '$' . length($_) . "\r\n$_\r\n" } @_) }

# The answer to one command: a status, a number or a string.
sub answer {
    my ($store) = @_;
    my $line = <$store> // die "redis-server closed the connection";
    die "redis-server: $line" if $line =~ /^-/;
    return $1 if $line =~ /^[+:](.*?)\r\n$/;
    my ($length) = $line =~ /^\$(-?\d+)/ or die "redis-server: $line";
    return undef if $length < 0;
    read($store, my $value, $length + 2);
    return substr($value, 0, $length);
}

my $next = Medes::generator($seed);
my $keys = 0;
my $store = connected();
# Two thirds documents, one third bytes that look like nothing: pictures, tokens.
for (my $bytes = 0; $bytes < 20_000_000; $keys++) {
    my $size = 100 + $next->() % 1500;
    my $value = '';
    if ($keys % 3 == 0) {
        $value .= pack('L<', $next->() ^ $next->() << 1) while length($value) < $size;
    } else {
        $value .= Medes::word($next) . ' ' while length($value) < $size;
    }
    print $store command('SET', "key:$keys", $value);
    $store->flush;
    answer($store);
    $bytes += length $value;
}
close $store;

Medes::serve('store', $seed, sub {
    my ($n) = @_;
    my $store = connected();
    my $total = 0;
    for my $step (1 .. 100) {
        my $at = ($n * 31 + $step * 97) % $keys;
        print $store command('GET', "key:$at");
        $store->flush;
        $total += length(answer($store) // '');
    }
    print $store command('SET', "seen:$n", "$seed:$n");
    $store->flush;
    answer($store);
    close $store;
    return { bytes => $total, keys => $keys };
});
