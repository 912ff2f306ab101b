/*
 * How a reader resumes (protocol.md sections 7.3, 7.11 and 14.2), small enough to look at all of it.
 *
 * One (stream, instance) of a log on disk, which up to two servers open (the second overtakes the
 * first, which does not know), an operator who keeps a copy, puts it back or moves the directory
 * away, retention, rows that are lost, and a reader who says its incarnations, acknowledges as a
 * federation sender does, and may be cut off at any moment. `make model` lets spin visit every
 * state within the bounds below, and then takes out one rule after the other (-DNO_...): each of
 * these has to be found wrong. tests/model/test_resume.py gives spin what the code has answered
 * in the random machine of the cursor (-DTAPE), and gives the code what spin has walked;
 * tests/simulation/recorded.py makes such tapes of simulated worlds.
 *
 * An answer is taken as soon as it is given. That one is lost with its connection is a cut before it;
 * one that arrives after its server has died changes nothing but the reader, and commutes with
 * everything that happens to the log meanwhile.
 */

#ifndef TOKENS
#define TOKENS 3        /* the highest token */
#define STARTS 3        /* of servers, over all histories */
#define COPIES 1        /* that are kept */
#define PLACES STARTS   /* that a reader says */
#define KEPT   0        /* copies of what the reader has */
#define NUM    byte
#endif

/* What happens. */
#define START     1     /* server: opens the log, and overtakes who has it */
#define STOP      2     /* server */
#define APPEND    3     /* server, tokens */
#define MOVE      4     /* server, tokens: without rows */
#define LOSE      5     /* server, tokens: an upstream could not tell their rows */
#define DAMAGE    6     /* after, upto: the disk does not give the rows back */
#define TRIM      7     /* server, upto: retention */
#define COPY      8     /* number */
#define RESTORE   9     /* number: no server runs */
#define AWAY     10     /* begin with an empty directory: no server runs */
#define CONNECT  11     /* server */
#define CUT      12
#define ASK      13     /* how many tokens at most; on tape: the answer, where it ends */
#define ACK      14     /* token */
#define AGAIN    15     /* another tape begins: everything as at first */
#define HELD     16     /* on tape: position, floor: as they are on a disk that was opened */
#define KEEP     17     /* on tape: number: a copy of what the reader has */
#define BACK     18     /* on tape: number: it has that again; what it got since was lost */
#define SAYS     19     /* on tape: incarnation, token: a place that it says, the newest first */
#define SAID     20     /* on tape: how many places it has said, and where it is */
#define HEARD    21     /* on tape: at the head, it was told where it is, and in which incarnation */

/* What a cursor answers. */
#define PAGE    1
#define GAP     2
#define FORKED  3
#define AHEAD   4
#define AT_HEAD 5

typedef Log {
	NUM position;
	NUM floor;
	NUM epoch;
	NUM count;              /* incarnations */
	NUM name[STARTS + 1];   /* of incarnation 1..count */
	NUM began[STARTS + 1];  /* at which position it began */
	NUM row[TOKENS + 1];    /* which start wrote it; 0: no row has this token */
	bool lost[TOKENS + 1];
	bool there;
};
Log logs[COPIES + 1];       /* the disk, and the copies */
#define disk logs[0]

typedef Server {
	bool up;
	NUM epoch;
	NUM number;             /* of its incarnation */
	NUM known;              /* incarnations that it has heard of */
	NUM position;
	NUM mark;               /* what its rows are recognised by */
};
Server servers[2];
NUM starts;                 /* servers started so far */

/* The reader: what it has, and what it says of itself. */
NUM at;
NUM begun;                  /* it was told to begin anew after this */
NUM has[TOKENS + 1];        /* which start wrote the row that it has */
NUM got[TOKENS + 1];        /* in which incarnation it got that row */
bool told[TOKENS + 1];      /* it was told that rows are missing here */
NUM entered;
NUM entered_name[PLACES + 1];
NUM entered_at[PLACES + 1];

#ifdef TAPE
typedef Reader {
	NUM at;
	NUM begun;
	NUM has[TOKENS + 1];
	NUM got[TOKENS + 1];
	bool told[TOKENS + 1];
	NUM entered;
	NUM entered_name[PLACES + 1];
	NUM entered_at[PLACES + 1];
};
Reader kept[KEPT + 1];
NUM places, shared;         /* that it has said; the token of the last of them */
#endif

/* Its connection. */
NUM with;                   /* 1 + server; 0: none */
bool fresh;                 /* nothing was answered on it */
NUM answer, to;

NUM op, a, b;               /* the step */
NUM i, j, k;                /* scratch; 0 between steps */
hidden NUM said;            /* the answer, for who reads along */

#define me     servers[a]
#define peer   servers[with - 1]
#define holds(s) (s.up && s.epoch == disk.epoch)
#define low(x, y) ((x) < (y) -> (x) : (y))

inline copy_log(from, into)
{
	logs[into].position = logs[from].position;
	logs[into].floor = logs[from].floor;
	logs[into].epoch = logs[from].epoch;
	logs[into].count = logs[from].count;
	logs[into].there = true;
	for (i : 0 .. STARTS) {
		logs[into].name[i] = logs[from].name[i];
		logs[into].began[i] = logs[from].began[i]
	}
	for (i : 0 .. TOKENS) {
		logs[into].row[i] = logs[from].row[i];
		logs[into].lost[i] = logs[from].lost[i]
	}
}

inline cut()
{
	with = 0; fresh = false; answer = 0; to = 0
}

/* -- the log ---------------------------------------------------------------------------------- */

inline start()
{
	starts++;
	disk.epoch++;
	me.up = true;
	me.epoch = disk.epoch;
	me.position = disk.position;
	me.mark = starts;
#ifdef NO_NEW_INCARNATION
	if
	:: disk.count -> skip   /* what was copied goes on under its name */
	:: else -> disk.count = 1; disk.name[1] = starts
	fi;
#else
	disk.count++;
	disk.name[disk.count] = starts;
	disk.began[disk.count] = disk.position;
#endif
	me.number = disk.count;
	me.known = disk.count
}

inline stop()
{
	me.up = false; me.epoch = 0; me.number = 0; me.known = 0; me.position = 0; me.mark = 0;
	if
	:: with == a + 1 -> cut()
	:: else
	fi
}

/* Rows of server a at the next b tokens: none, some that are lost, or some that are there. */
inline write(is_row, is_lost)
{
	if
#ifndef NO_FENCE
	:: me.epoch != disk.epoch -> skip      /* it appends nothing */
#endif
	:: else ->
		assert(me.epoch == disk.epoch);    /* a fenced writer appends nothing */
		for (i : 1 .. TOKENS) {
			if
			:: me.position < i && i <= me.position + b ->
				assert(i > disk.position);     /* tokens never go back */
				disk.row[i] = (is_row -> me.mark : 0);
				disk.lost[i] = is_lost
			:: else
			fi
		}
		me.position = me.position + b;
		disk.position = me.position
	fi
}

inline damage()
{
	for (i : 1 .. TOKENS) {
		if
		:: a < i && i <= b -> disk.lost[i] = true
		:: else
		fi
	}
}

inline trim(upto)
{
	if
	:: me.epoch == disk.epoch && upto > disk.floor -> disk.floor = low(upto, disk.position)
	:: else
	fi
}

inline away()
{
	disk.position = 0; disk.floor = 0; disk.epoch = 0; disk.count = 0;
	for (i : 0 .. STARTS) { disk.name[i] = 0; disk.began[i] = 0 }
	for (i : 0 .. TOKENS) { disk.row[i] = 0; disk.lost[i] = false }
}

/* -- what the server answers -------------------------------------------------------------------- */

/* k: up to where the reader shares this history, as far as its server knows; 0 if nothing is known. */
inline common()
{
	k = 0;
	j = at;                                     /* what it has of the incarnation that is looked at */
	i = entered;
	do
	:: i == 0 -> break
	:: else ->
		for (to : 1 .. STARTS) {                /* to: scratch */
			if
			:: i && to <= peer.known && disk.name[to] == entered_name[i] ->
				if
				:: to == peer.known -> k = j
#ifndef NO_END_OF_INCARNATIONS
				:: else -> k = low(j, disk.began[to + 1])
#else
				:: else -> k = j
#endif
				fi;
				i = 0                           /* found: look no further */
			:: else
			fi
		}
		if
#ifndef NO_EARLIER_PLACES
		:: i -> j = low(j, entered_at[i]); i--
#else
		:: i -> i = 0
#endif
		:: else
		fi
	od;
	to = 0
}

inline ask()
{
	common();
	if
#ifndef NO_LOOK
	:: fresh && (at > peer.position || (at && entered && k < at)) ->
		peer.known = disk.count;                /* it looks who has begun since */
		common()
#endif
	:: else
	fi;
	i = 0;
	if
#if !defined(NO_INCARNATION_CHECK) && !defined(OLD_PEER)
	:: fresh && at && entered && k < at -> answer = FORKED; to = k
	:: else ->
#else
	:: true ->
#endif
		if
#ifndef NO_AHEAD_CHECK
		:: at > peer.position -> answer = AHEAD; to = disk.floor
#endif
		:: at >= peer.position -> answer = AT_HEAD; to = at
		:: at < peer.position && at < disk.floor ->
#ifndef NO_RETENTION_GAP
			answer = GAP
#else
			answer = PAGE
#endif
			; to = disk.floor
		:: at < peer.position && at >= disk.floor ->
			answer = (disk.lost[at + 1] -> GAP : PAGE);
			to = at + 1;
			do
			:: to < peer.position && (disk.lost[to + 1] == disk.lost[at + 1]) -> to++
			:: else -> break
			od;
#ifdef NO_LOST_GAP
			answer = PAGE
#endif
		fi
	fi
}

/* The answer may end earlier: pages are bounded. */
inline shorten(upto)
{
	if
	:: (answer == PAGE || answer == GAP) && upto < to -> to = upto
	:: else
	fi
}

/* -- what the reader makes of it ------------------------------------------------------------------ */

inline enter(before, after)
{
	/* where the position went back, what was got above it is void */
	k = low(before, after);
	if
	:: entered && entered_name[entered] == disk.name[peer.number] && entered_at[entered] <= k
	:: else ->
#ifndef NO_VOID_PLACES
		do
		:: entered && entered_at[entered] >= k ->
			entered_name[entered] = 0; entered_at[entered] = 0; entered--
		:: else -> break
		od;
#endif
		if
		:: entered == PLACES ->                 /* the oldest is forgotten */
			for (i : 1 .. PLACES - 1) {
				entered_name[i] = entered_name[i + 1]; entered_at[i] = entered_at[i + 1]
			}
		:: else -> entered++
		fi;
		entered_name[entered] = disk.name[peer.number];
		entered_at[entered] = k
	fi
}

/* j: a token at which the reader has a row that this history does not have; else 0. */
inline foreign()
{
	j = 0;
	for (i : 1 .. TOKENS) {
		if
		:: i <= at && has[i] && has[i] != disk.row[i] -> j = i
		:: else
		fi
	}
}

inline take()
{
	/* Who is ahead of the history is told, always; and who has rows of another, if it says so. */
	assert(!fresh || at <= disk.position || answer == FORKED || answer == AHEAD);
#ifndef OLD_PEER
	foreign();
	assert(!fresh || !j || answer == FORKED || answer == AHEAD);
	if
	:: answer == FORKED && has[to + 1] && has[to + 1] == disk.row[to + 1] ->
		for (i : 1 .. STARTS) {
			/* Nobody has to forget what is there, and was got in an incarnation that is noted. */
			assert(i > disk.count || disk.name[i] != got[to + 1])
		}
	:: else
	fi;
#endif
	fresh = false;
	for (i : 1 .. TOKENS) {
		if
		:: (answer == PAGE) && at < i && i <= to ->
			assert(!has[i]);                    /* none twice */
			has[i] = (i <= disk.floor || disk.lost[i] -> 0 : disk.row[i]);
			got[i] = (has[i] -> disk.name[peer.number] : 0)
		:: (answer == GAP) && at < i && i <= to -> told[i] = true
		:: answer == FORKED && i > to -> has[i] = 0; got[i] = 0; told[i] = false
		:: answer == AHEAD -> has[i] = 0; got[i] = 0; told[i] = false
		:: else
		fi
	}
	if
	:: answer == AHEAD || (answer == FORKED && to == 0) -> begun = to
	:: answer == FORKED && to < begun -> begun = to
	:: else
	fi;
	if
	:: answer != AT_HEAD ->
		enter(at, to);
		at = to
	:: else
	fi;
#ifndef OLD_PEER
	/* No row is missed without being told, and none is of another history. */
	for (i : 1 .. TOKENS) {
		assert(i > at || !has[i] || has[i] == disk.row[i]);
		assert(i > at || i <= begun || has[i] || told[i] || !disk.row[i]);
		assert(i <= at || !has[i])
	}
#endif
}

/* It has everything up to a: what no sender needs any more may go. */
inline acknowledge()
{
	if
	:: a <= peer.position && peer.epoch == disk.epoch && a > disk.floor + 1 ->
		for (i : 1 .. TOKENS) {
#ifdef OLD_PEER
			break;
#endif
			/* Nothing goes for an acknowledgement that its sender does not have. */
			assert(i >= a || i <= disk.floor || i <= begun || !disk.row[i] || told[i]
				|| has[i] == disk.row[i])
		}
		disk.floor = a - 1
	:: else
	fi
}

/* -- what only tapes tell ------------------------------------------------------------------------ */

#ifdef TAPE
/* Rows that were on disk are there; a floor that readers heard of may not be on it yet. */
inline held()
{
	assert(disk.position == a);
	assert(b <= disk.floor);
	disk.floor = b
}

inline keep()
{
	kept[a].at = at; kept[a].begun = begun; kept[a].entered = entered;
	for (i : 0 .. TOKENS) {
		kept[a].has[i] = has[i]; kept[a].got[i] = got[i]; kept[a].told[i] = told[i]
	}
	for (i : 0 .. PLACES) {
		kept[a].entered_name[i] = entered_name[i]; kept[a].entered_at[i] = entered_at[i]
	}
}

inline back()
{
	at = kept[a].at; begun = kept[a].begun; entered = kept[a].entered;
	for (i : 0 .. TOKENS) {
		has[i] = kept[a].has[i]; got[i] = kept[a].got[i]; told[i] = kept[a].told[i]
	}
	for (i : 0 .. PLACES) {
		entered_name[i] = kept[a].entered_name[i]; entered_at[i] = kept[a].entered_at[i]
	}
}

/* What it says of itself is what it has been through. */
inline says()
{
	if
	:: places == 0 -> shared = at
	:: else -> shared = low(shared, entered_at[entered - places + 1])
	fi;
	assert(places < entered);
	assert(a == entered_name[entered - places]);
	assert(b == shared);
	places++
}
#endif

/* -- the world -------------------------------------------------------------------------------- */

inline again()
{
	away();
	disk.there = true;
	for (j : 1 .. COPIES) { logs[j].there = false }
	starts = 0; at = 0; begun = 0; entered = 0;
	for (i : 0 .. TOKENS) { has[i] = 0; got[i] = 0; told[i] = false }
	for (i : 0 .. PLACES) { entered_name[i] = 0; entered_at[i] = 0 }
	for (k : 0 .. 1) {
		servers[k].up = false; servers[k].epoch = 0; servers[k].number = 0;
		servers[k].known = 0; servers[k].position = 0; servers[k].mark = 0
	}
	cut()
}

#define stopped (!servers[0].up && !servers[1].up)

inline clear()
{
	op = 0; a = 0; b = 0; i = 0; j = 0; k = 0; answer = 0; to = 0; said = 0
}

/* One step that may happen: op with a and b. */
inline choose()
{
	if
	:: starts < STARTS && !servers[0].up -> op = START; a = 0
#ifndef ALONE
	:: starts < STARTS && !servers[1].up && servers[0].up -> op = START; a = 1
#endif
#ifndef ALONE
	:: servers[0].up -> op = STOP; a = 0
#else
	:: servers[0].up && !with -> op = STOP; a = 0
#endif
	:: servers[1].up -> op = STOP; a = 1
	:: servers[0].up && servers[0].position < TOKENS -> op = APPEND; a = 0; b = 1
	:: servers[1].up && servers[1].position < TOKENS -> op = APPEND; a = 1; b = 1
	:: stopped && disk.position > disk.floor && !disk.lost[disk.position] -> op = DAMAGE; a = disk.position - 1; b = disk.position
	:: holds(servers[0]) && disk.floor < disk.position -> op = TRIM; a = 0; b = disk.floor + 1
#ifndef ALONE
	:: disk.count && !logs[1].there -> op = COPY; a = 1
	:: stopped && logs[1].there -> op = RESTORE; a = 1
	:: stopped && disk.count -> op = AWAY
#else
	/* On a walk by chance it is worth while to put a copy back. */
	:: servers[0].up && disk.position > 1 && at < disk.position && !logs[1].there -> op = COPY; a = 1
	:: stopped && logs[1].there && at > logs[1].position -> op = RESTORE; a = 1
	:: stopped && disk.position == TOKENS -> op = AWAY
#endif
	:: servers[0].up && !with -> op = CONNECT; a = 0
	:: servers[1].up && !with -> op = CONNECT; a = 1
	:: with -> op = CUT
	:: with -> op = ASK; b = 1
#ifndef ALONE
	:: with -> op = ASK; b = TOKENS
#else
	/* On a walk by chance what readers and writers do comes more often. */
	:: with -> op = ASK; b = 1
	:: with -> op = ASK; b = 1
	:: with -> op = ASK; b = 1
	:: servers[0].up && servers[0].position < TOKENS -> op = APPEND; a = 0; b = 1
	:: servers[0].up && !with -> op = CONNECT; a = 0
#endif
#ifdef NO_POSITION_BEFORE_ACK
	:: with && at -> op = ACK; a = at
#else
	:: with && at && !fresh -> op = ACK; a = at
#endif
#ifdef NO_NAMES_OF_SENDERS
	:: with -> op = ACK; a = peer.position    /* a stranger's */
#endif
	fi
}

inline happen()
{
	if
	:: op == START -> start()
	:: op == STOP -> stop()
	:: op == APPEND -> write(true, false)
	:: op == MOVE -> write(false, false)
	:: op == LOSE -> write(true, true)
	:: op == DAMAGE -> damage()
	:: op == TRIM -> trim(b)
	:: op == COPY -> copy_log(0, a)
	:: op == RESTORE ->
		copy_log(a, 0);
#ifdef ALONE
		logs[1].there = false
#endif
	:: op == AWAY -> away()
	:: op == CONNECT -> with = a + 1; fresh = true
	:: op == CUT -> cut()
	:: op == ASK ->
		ask();
#ifndef TAPE
		shorten(at + b);
#else
		/* What the code has answered is what it may answer. */
		assert(answer == a);
		assert(b == to || ((a == PAGE || a == GAP) && at < b && b <= to));
		shorten(b);
#endif
		take();
		said = answer
	:: op == ACK -> acknowledge()
	:: op == AGAIN -> again()
#ifdef TAPE
	:: op == HELD -> held()
	:: op == KEEP -> keep()
	:: op == BACK -> back()
	:: op == SAYS -> says()
	:: op == HEARD -> enter(at, at)
	:: op == SAID ->
		assert(a == places && places == entered);
		assert(b == at);
		places = 0; shared = 0
#endif
	fi
}

#ifdef TAPE
chan tape = [0] of { NUM, NUM, NUM };
#include "tape.pml"
#endif

active proctype world()
{
	d_step { disk.there = true }
	do
#ifdef TAPE
	:: tape?op, a, b -> printf("step %d %d %d\n", op, a, b);
		d_step { happen(); clear() }
#else
	:: atomic {
		choose();
		d_step {
			printf("step %d %d %d ", op, a, b);
			happen();
			printf("-> %d %d\n", said, at);
			clear()
		}
	}
#endif
	od
}
