#!/bin/sh
# Has programs do real work twice, as they are and on the preloaded library, and compares what they make of it.
# Programs that are not installed are skipped. The exit status is 0 if all the others did as well with the library.
#
#     tests/programs.sh [libpma.so]
#
# Without an argument the library is built.

set -u
cd "$(dirname "$0")/.." || exit 2
if [ $# -gt 0 ]; then
    library=$(realpath "$1")
else
    cargo build --quiet --release --package pma-preload || exit 2
    library=$(realpath "${CARGO_TARGET_DIR:-target}/release/libpma.so")
fi
if ! LD_PRELOAD=$library cat /proc/self/maps | grep -q "$library"; then
    echo "$library cannot be preloaded" >&2
    exit 2
fi

work=$(mktemp -d) || exit 2
trap 'rm -rf "$work"' EXIT
failed=0

# compare PROGRAM: runs the function try_PROGRAM (with x for +) in two fresh directories, without and with the library. What it
# prints, and whether it fails, are to be the same; without the library it is not to fail.
compare() {
    if ! command -v "$1" > "$work/which"; then
        echo "skipped  $1: not installed"
        return
    fi
    for kind in plain preloaded; do
        mkdir -p "$work/$1/$kind"
        (
            cd "$work/$1/$kind" || exit 2
            export LC_ALL=C TZ=UTC
            [ $kind = plain ] || export LD_PRELOAD="$library"
            "try_$(echo "$1" | tr + x)"
        ) > "$work/$1/$kind.out" 2> "$work/$1/$kind.err"
        echo "status $?" >> "$work/$1/$kind.out"
    done
    if ! grep -qx "status 0" "$work/$1/plain.out"; then
        echo "FAILED   $1, without the library already"
        tail -n 5 "$work/$1/plain.err"
        failed=1
    elif ! cmp -s "$work/$1/plain.out" "$work/$1/preloaded.out"; then
        echo "FAILED   $1"
        diff "$work/$1/plain.out" "$work/$1/preloaded.out" | head -n 20
        tail -n 5 "$work/$1/preloaded.err"
        failed=1
    else
        echo "ok       $1"
    fi
}

try_python3() {
    # What is started under this name may be a script that looks for the interpreter.
    python=$(python3 -c 'import sys; print(sys.executable)') || return
    PYTHONMALLOC=malloc PYTHONHASHSEED=0 "$python" - <<'END'
import collections, hashlib, json, multiprocessing, os, random, re, subprocess, threading, zlib

random.seed(7)

def words(count):
    return ["".join(random.choices("abcdefgh", k=random.randint(1, 12))) for _ in range(count)]

def digest(value):
    return hashlib.sha256(repr(value).encode()).hexdigest()

text = " ".join(words(200_000))
counts = collections.Counter(text.split())
print(digest(sorted(counts.items())), len(re.findall(r"\b[ab]+c", text)))
tree = json.loads(json.dumps({word: [list(range(count % 50)), word * 3] for word, count in counts.items()}))
print(digest(tree), len(zlib.compress(text.encode())))
print(digest(zlib.decompress(zlib.compress(text.encode() * 5))))
matrix = [[(x * y) % 97 for x in range(300)] for y in range(300)]
print(digest([list(column) for column in zip(*matrix)]), digest(2 ** 200_000 % 10 ** 50))

def work(seed, results):
    mine = random.Random(seed)
    kept = {}
    for step in range(60_000):
        kept[mine.randrange(2_000)] = bytes(mine.randrange(3_000))
    results[seed] = sum(map(len, kept.values()))

results = {}
threads = [threading.Thread(target=work, args=(seed, results)) for seed in range(6)]
[thread.start() for thread in threads]
for number in range(20):
    # Forks while the threads are at work.
    child = os.fork()
    if child == 0:
        os._exit(0 if len([bytes(size) for size in range(2_000)]) == 2_000 else 1)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), end=" ")
print(subprocess.run(["sh", "-c", "echo from a shell"], capture_output=True, text=True).stdout)
[thread.join() for thread in threads]
print(sorted(results.items()))
with multiprocessing.get_context("fork").Pool(4) as pool:
    print(pool.map(len, [word * 1000 for word in words(500)])[:20])
END
}

try_git() {
    export HOME="$PWD" GIT_CONFIG_NOSYSTEM=1 GIT_CONFIG_GLOBAL=/dev/null
    export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b
    git init --quiet --initial-branch=main one && cd one || return
    for commit in $(seq 1 30); do
        for file in $(seq 1 20); do
            seq "$file" $((file * 40 + commit)) > "file$file"
            echo "commit $commit" >> "file$file"
        done
        git add . && GIT_AUTHOR_DATE="$((1000000000 + commit)) +0000" GIT_COMMITTER_DATE="$((1000000000 + commit)) +0000" \
            git commit --quiet --message "commit $commit" || return
    done
    git log --stat --format=%H%n%s && git diff HEAD~20 HEAD && git blame file7 || return
    git gc --quiet --aggressive --prune=now && git fsck --full --strict --no-progress || return
    cd .. && git clone --quiet --no-local one two && cd two && git rev-parse HEAD && git grep -c 77 HEAD~3 || return
    git checkout --quiet -b side HEAD~10 && seq 1000 > more && git add more || return
    export GIT_AUTHOR_DATE="1000000100 +0000" GIT_COMMITTER_DATE="1000000100 +0000"
    git commit --quiet --message more && git merge --quiet --message merge main && git rev-parse HEAD
}

# A C program of many functions that prints a number.
write_c() {
    awk 'BEGIN {
        print "#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>"
        for (n = 0; n < 400; n++) {
            printf "static unsigned f%d(unsigned x, unsigned *a)\n{\n", n
            printf "\tfor (unsigned i = 0; i < %d; i++) {\n", n % 13 + 3
            printf "\t\ta[(x + i) %% 64] ^= x * %du + (a[i %% 64] >> %d);\n", n * 7 + 1, n % 31
            printf "\t\tswitch (x %% 5) { case 0: x += a[3]; break; case 1: x ^= i; break; case 3: x = -x; }\n"
            printf "\t}\n\treturn x + %d;\n}\n", n
        }
        print "int main(void)\n{\n\tunsigned x = 1, *a = calloc(64, sizeof *a);\n\tif (!a) return 1;"
        for (n = 0; n < 400; n++) printf "\tx += f%d(x, a);\n", n
        print "\tfree(a);\n\tprintf(\"%u\\n\", x);\n}"
    }'
}

try_gcc() {
    write_c > program.c
    for level in 0 2 3; do
        gcc -O$level -g -fdebug-prefix-map="$PWD=." -Wall -c program.c -o program.o && cksum < program.o || return
        gcc program.o -o program && ./program || return
    done
}

try_gxx() {
    cat > program.cc <<'END'
#include <algorithm>
#include <iostream>
#include <map>
#include <memory>
#include <regex>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

int main()
{
	std::vector<std::thread> threads;
	std::vector<std::size_t> sums(4);
	for (int number = 0; number < 4; number++)
		threads.emplace_back([&sums, number] {
			std::map<std::string, std::unique_ptr<std::vector<int>>> map;
			std::unordered_map<int, std::string> words;
			for (int i = 0; i < 30000; i++) {
				words[i % 777] += char('a' + i % 26);
				map[words[i % 777]] = std::make_unique<std::vector<int>>(i % 100, number);
			}
			for (const auto &entry : map)
				sums[number] += entry.first.size() * entry.second->size();
		});
	for (auto &thread : threads)
		thread.join();
	for (auto sum : sums)
		std::cout << sum << '\n';
	std::string text;
	for (int i = 0; i < 2000; i++)
		text += "word" + std::to_string(i * i % 1000) + ' ';
	std::cout << std::regex_replace(text, std::regex("word(\\d)(\\d+)"), "$2$1") << '\n';
	try {
		std::string().at(1);
	} catch (const std::exception &error) {
		std::cout << "thrown\n";
	}
}
END
    g++ -std=c++17 -O2 -pthread program.cc -o program && ./program
}

try_sqlite3() {
    sqlite3 data.db <<'END'
PRAGMA cache_size = 4000;
CREATE TABLE word (id INTEGER PRIMARY KEY, text TEXT, number INTEGER);
WITH RECURSIVE n (i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 200000)
    INSERT INTO word SELECT i, printf('%x-%d', i * 2654435761 % 4294967296, i % 1000), i * i % 9973 FROM n;
CREATE INDEX by_text ON word (text);
CREATE INDEX by_number ON word (number, text);
SELECT number, count(*), min(text), max(text), sum(length(text)) FROM word GROUP BY number ORDER BY 2 DESC, 1 LIMIT 50;
SELECT count(*) FROM word a JOIN word b ON a.number = b.number AND a.id < b.id WHERE a.id % 10 = 0;
SELECT group_concat(text) FROM (SELECT text FROM word ORDER BY substr(text, 3), id LIMIT 2000);
DELETE FROM word WHERE id % 3 = 0;
UPDATE word SET text = text || text WHERE id % 7 = 0;
VACUUM;
PRAGMA integrity_check;
SELECT count(*), sum(length(text)), total(number) FROM word;
SELECT json_group_array(json_object('text', text, 'number', number)) FROM (SELECT * FROM word ORDER BY id LIMIT 500);
END
    cksum < data.db
}

try_perl() {
    PERL_HASH_SEED=0 perl - <<'END'
use strict; use warnings;
my (%count, @words, $x);
$x = 1;
for (1 .. 200_000) {
    $x = ($x * 1103515245 + 12345) % 2147483648;
    push @words, sprintf("%x", $x % 5000) . "w" x ($x % 20);
}
$count{$_}++ for @words;
print join(",", map { "$_=$count{$_}" } sort { $count{$b} <=> $count{$a} || $a cmp $b } keys %count), "\n";
my $text = join " ", @words;
my $found = () = $text =~ /\b[0-9a]+(w+)\b/g;
(my $other = $text) =~ s/(\w)(w+)/length($2) . $1/ge;
print "$found ", length($other), " ", unpack("%32C*", $other), "\n";
my %tree;
for my $word (@words[0 .. 50_000]) {
    my $node = \%tree;
    $node = $node->{$_} //= {} for split //, $word;
}
sub nodes { my $n = 1; $n += nodes($_) for values %{$_[0]}; return $n }
print nodes(\%tree), "\n";
for my $child (1 .. 10) {
    my $id = open(my $pipe, "-|") // die "fork";
    if (!$id) {
        my @more = map { "$_ $child" } @words;
        print "child $child: ", scalar(@more), " ", length("@more"), "\n";
        exit 0;
    }
    print <$pipe>;
    close $pipe or die "child";
}
print `echo from a shell`;
END
}

try_gs() {
    cat > pages.ps <<'END'
%!PS
/Helvetica findfont 14 scalefont setfont
1 1 12 { /page exch def
    0 1 60 { /line exch def
        40 line 12 mul 40 add moveto
        (Page ) show page 10 string cvs show (, line ) show line 10 string cvs show
        line 60 div page 12 div 0.5 setrgbcolor
    } for
    0 6 354 { /angle exch def
        gsave 400 400 translate angle rotate page setlinewidth
        0 0 moveto 50 100 page 20 mul -50 180 angle 3 div curveto stroke grestore
    } for
    gsave 100 200 translate 200 200 scale
    16 16 8 [16 0 0 -16 0 16] { 256 string 0 1 255 { 2 copy dup page mul 255 and put pop } for } image
    grestore
    showpage
} for
END
    gs -q -dSAFER -dBATCH -dNOPAUSE -sDEVICE=ppmraw -r100 -dTextAlphaBits=4 -dGraphicsAlphaBits=4 \
        -sOutputFile=page%02d.ppm pages.ps && cksum page*.ppm || return
    gs -q -dSAFER -dBATCH -dNOPAUSE -sDEVICE=pdfwrite -sOutputFile=pages.pdf pages.ps || return
    gs -q -dSAFER -dBATCH -dNOPAUSE -sDEVICE=txtwrite -sOutputFile=- pages.pdf && \
        gs -q -dSAFER -dBATCH -dNOPAUSE -sDEVICE=pgmraw -r60 -dNumRenderingThreads=4 -sOutputFile=- pages.pdf | cksum
}

# Its modules prefer the symbols of the libraries that they need to those of the program.
try_php() {
    php <<'END'
<?php
mt_srand(7);
$words = [];
for ($i = 0; $i < 200000; $i++) $words["w" . mt_rand(0, 30000)][] = str_repeat(chr(97 + $i % 26), $i % 90);
ksort($words);
echo md5(serialize($words)), " ", md5(json_encode(json_decode(json_encode($words), true))), "\n";
$text = implode(" ", array_map(fn($parts) => implode("", $parts), array_slice($words, 0, 3000)));
echo strlen($text), " ", preg_match_all("/([a-f]+)z/", $text), " ", md5(preg_replace("/a+b/", "-", $text)), "\n";
echo strlen(gzuncompress(gzcompress($text))), " ", hash("sha256", $text), "\n";
usort($words, fn($a, $b) => count($a) <=> count($b) ?: strcmp($a[0], $b[0]));
echo md5(serialize(array_slice($words, 0, 500))), "\n";
END
}

try_ruby() {
    ruby <<'END'
words = Hash.new { |hash, key| hash[key] = [] }
x = 7
200_000.times { |i| x = (x * 1103515245 + 12345) % 2147483648; words["w#{x % 30_000}"] << (97 + i % 26).chr * (i % 90) }
puts words.sum { |word, parts| word.size * parts.join.size }, words.keys.sort.first(5).inspect
text = words.values.flatten.join(" ")
puts text.scan(/[a-f]+ z/).size, text.gsub(/a+ b/, "-").size, text.sum
threads = 4.times.map { |t| Thread.new { (0..30_000).map { |i| "#{t}-#{i}".reverse }.uniq.size } }
puts threads.map(&:value).inspect
10.times do |child|
  read, write = IO.pipe
  id = fork { read.close; write.puts "child #{child}: #{words.values.map(&:size).sum}"; exit! 0 }
  write.close
  puts read.read
  Process.wait id
end
GC.start
puts `echo from a shell`
END
}

try_node() {
    cat > work.js <<'END'
const { Worker, isMainThread, workerData, parentPort } = require("worker_threads");
const { createHash } = require("crypto");
const { gzipSync, gunzipSync } = require("zlib");
function work(seed) {
    const hash = createHash("sha256");
    for (let round = 0; round < 30; round++) {
        const bytes = Buffer.alloc(100000 + round * 1000, seed);
        for (let i = 0; i < bytes.length; i += 7) bytes[i] = (i * round) & 255;
        hash.update(gunzipSync(gzipSync(bytes)));
    }
    return hash.digest("hex");
}
if (isMainThread) {
    const sums = [work(0)];
    for (let seed = 1; seed < 5; seed++)
        new Worker(__filename, { workerData: seed }).on("message", sum => {
            sums.push(sum);
            if (sums.length === 5) console.log(sums.sort());
        });
} else parentPort.postMessage(work(workerData));
END
    node work.js
}

for program in python3 git gcc g++ sqlite3 perl gs php ruby node; do
    compare $program
done
exit $failed
