# What the Perl programs share: a seed, random data made from it, and a small HTTP server on 127.0.0.1:$PORT.
#
# The contract is that of bench/functions: GET /ready, and POST / with {"n": 3}. Connections are closed after each
# answer, so an idle process holds none open.
package Medes;
use strict;
use warnings;
use IO::Socket::INET;
use JSON::PP;

# $MEDES_SEED if given; else random, so that no two sandboxes work on the same data.
sub seed {
    return $ENV{MEDES_SEED} + 0 if defined $ENV{MEDES_SEED};
    open(my $random, '<:raw', '/dev/urandom') or die "open /dev/urandom: $!";
    read($random, my $bytes, 6) == 6 or die "read /dev/urandom: $!";
    return unpack('Q<', $bytes . "\0\0");
}

# A generator of numbers below 2**31, which is all the randomness that made-up data needs.
sub generator {
    my ($state) = @_;
    return sub {
        use integer; # the product wraps around instead of becoming a float
        $state = ($state * 25214903917 + 11) & ((1 << 48) - 1);
        return $state >> 17;
    };
}

# A word, a common one more often than a rare one.
sub word {
    my ($next) = @_;
    my $rank = int(20000 ** ($next->() / 2**31));
    my $word = '';
    for (my $rest = $rank * 7919; $rest > 0; $rest = int($rest / 26)) {
        $word .= chr(97 + $rest % 26);
    }
    return $word;
}

sub serve {
    my ($name, $seed, $handle) = @_;
    my $server = IO::Socket::INET->new(
        LocalAddr => '127.0.0.1', LocalPort => $ENV{PORT}, Listen => 16, ReuseAddr => 1, Proto => 'tcp',
    ) or die "listen on port $ENV{PORT}: $!";
    my $json = JSON::PP->new->canonical;
    my $served = 0;
    while (1) {
        my $client = $server->accept or next;
        my $head = <$client> // '';
        my $length = 0;
        while (defined(my $line = <$client>)) {
            last if $line =~ /^\r?\n$/;
            $length = $1 if $line =~ /^content-length:\s*(\d{1,5})/i;
        }
        my ($status, $answer) = ('404 Not Found', { error => 'no such path' });
        if ($head =~ m{^GET /ready }) {
            ($status, $answer) = ('200 OK', { ready => JSON::PP::true });
        } elsif ($head =~ m{^POST / }) {
            read($client, my $body, $length);
            my $request = eval { $json->decode($body) };
            if (ref $request eq 'HASH' && defined $request->{n} && $request->{n} =~ /^\d{1,10}$/) {
                my $n = $request->{n} + 0;
                my $result = $handle->($n);
                $served++;
                $answer = { function => $name, seed => $seed, served => $served, n => $n, result => $result };
                $status = '200 OK';
            } else {
                ($status, $answer) = ('400 Bad Request', { error => 'body is not {"n": integer}' });
            }
        }
        my $body = $json->encode($answer);
        print $client "HTTP/1.1 $status\r\nContent-Type: application/json\r\nContent-Length: ", length($body),
            "\r\nConnection: close\r\n\r\n", $body;
        close $client;
    }
}

1;
