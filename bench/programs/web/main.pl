# web: articles as pages made from a template, with a cache of rendered pages and a table of sessions.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/../runtime";
use Medes;
use Digest::MD5 'md5_hex';

my $seed = Medes::seed();
my $next = Medes::generator($seed);
my @articles = map {
    my $words = 40 + $next->() % 120;
    {
        title => join(' ', map { ucfirst Medes::word($next) } 1 .. 4),
        text => join(' ', map { Medes::word($next) } 1 .. $words),
        links => [map { $next->() % 4000 } 1 .. 5],
    }
} 1 .. 4000;
my (%pages, %sessions);

sub page {
    my ($at) = @_;
    my $article = $articles[$at];
    my $links = join '', map { "<li><a href=\"/article/$_\">$articles[$_]{title}</a></li>" } @{ $article->{links} };
    return "<html><head><title>$article->{title}</title></head><body><h1>$article->{title}</h1>"
        . "<p>$article->{text}</p><ul>$links</ul></body></html>\n";
}

Medes::serve('web', $seed, sub {
    my ($n) = @_;
    my $user = md5_hex("$seed user $n");
    my $total = 0;
    for my $step (1 .. 50) {
        my $at = ($n * 31 + $step * 17) % @articles;
        $total += length($pages{$at} //= page($at));
        push @{ $sessions{$user}{seen} }, $at if $step == 1;
    }
    return { bytes => $total, user => $user };
});
