/*
 * Streams of states, which are kept in memory (protocol.md section 7.3): what was let go is
 * compacted to the newest row of each key, and a row that says that there is nothing any more is
 * kept for those who have heard of what was there.
 *
 * One (stream, instance) with two keys, whose oldest rows and whose notes of what is gone may go at
 * any moment, whose server may be restarted, and a reader that is cut off at any moment and takes
 * compacted rows or does not. That rows of another history are void is resume.pml's.
 */

#ifndef TOKENS
#define TOKENS 5        /* the highest token */
#define RESTARTS 1
#define NUM byte
#endif
#define KEYS 2

/* What happens; the numbers are those of resume.pml where there is the same. */
#define START     1     /* the server is restarted: its memory is gone */
#define APPEND    3     /* key, whether there is something */
#define TRIM      7     /* the oldest row is let go */
#define FORGET    8     /* up to which token rows that say "nothing" are not kept any more */
#define CONNECT  11     /* whether the reader takes compacted rows */
#define CUT      12
#define ASK      13     /* how many tokens at most */

NUM position, floor, gone, restarts;
NUM key[TOKENS + 1];    /* of the row: 1..KEYS; 0: there is none */
bool blank[TOKENS + 1]; /* it says that there is nothing */

NUM at;
NUM state[KEYS + 1];    /* the token of the row that the reader holds; 0: nothing */
bool with, compacted;

NUM op, a, b, i, j, to;

/* j: the newest row of key a up to b; 0: none. */
inline newest()
{
	j = 0;
	for (i : 1 .. TOKENS) {
		if
		:: i <= b && key[i] == a -> j = i
		:: else
		fi
	}
}

inline begin_anew()
{
	at = 0;
	compacted = true;       /* whoever begins anew gets the newest of each key */
	for (i : 1 .. KEYS) { state[i] = 0 }
}

inline read()
{
	to = (at + b < position -> at + b : position);
	for (b : 1 .. TOKENS) {                     /* b: scratch from here */
		if
		:: b > at && b <= to && key[b] ->
			a = key[b];
			j = b;
#ifndef NO_COMPACTION
			if
			:: b <= floor ->                    /* it was let go: only the newest of its key is there */
				for (i : 1 .. TOKENS) {
					if
					:: i > b && i <= floor && key[i] == a -> j = 0
					:: else
					fi
				}
				if
#ifndef NO_BLANKS_KEPT
				:: blank[b] && (b <= gone || at == 0) -> j = 0
#else
				:: blank[b] -> j = 0
#endif
				:: else
				fi
			:: else
			fi;
#else
			j = (b <= floor -> 0 : b);
#endif
			if
			:: j -> state[a] = (blank[b] -> 0 : b)
			:: else
			fi
		:: else
		fi
	}
	at = to
}

inline ask()
{
	if
	:: at >= position ->
		/* At the head the reader has the state of the writer. */
		for (a : 1 .. KEYS) {
			b = position;
			newest();
			assert(state[a] == (j && !blank[j] -> j : 0))
		}
#ifndef NO_RESTART
#ifdef NO_BLANK_FLOOR
	:: at < position && at < floor && !compacted -> begin_anew()
#else
	:: at < position && at < floor && (!compacted || (at && at < gone)) -> begin_anew()
#endif
#endif
	:: else -> read()
	fi
}

inline choose()
{
	if
	:: restarts < RESTARTS && position < TOKENS - 2 -> op = START
	:: position < TOKENS -> op = APPEND; a = 1; b = 0
	:: position < TOKENS -> op = APPEND; a = 1; b = 1
	:: position < TOKENS -> op = APPEND; a = 2; b = 0
	:: position < TOKENS -> op = APPEND; a = 2; b = 1
	:: floor < position -> op = TRIM
	:: floor && gone < floor -> op = FORGET; a = floor
	:: !with -> op = CONNECT; a = 0
	:: !with -> op = CONNECT; a = 1
	:: with -> op = CUT
	:: with -> op = ASK; b = 1
	:: with -> op = ASK; b = 2
	:: with -> op = ASK; b = TOKENS
	fi
}

inline happen()
{
	if
	:: op == START ->
		/* Tokens that were given out before are passed: who has them is below the floor. */
		restarts++;
#ifndef NO_RESERVED_TOKENS
		position++;
#endif
		floor = position; gone = position;
		with = false; compacted = false;
		for (i : 0 .. TOKENS) { key[i] = 0; blank[i] = false }
	:: op == APPEND -> position++; key[position] = a; blank[position] = !b
	:: op == TRIM -> floor++
	:: op == FORGET -> gone = a
	:: op == CONNECT -> with = true; compacted = a
	:: op == CUT -> with = false; compacted = false
	:: op == ASK -> ask()
	fi
}

active proctype world()
{
	do
	:: atomic {
		choose();
		d_step {
			printf("step %d %d %d ", op, a, b);
			happen();
			printf("-> %d %d %d\n", at, state[1], state[2]);
			op = 0; a = 0; b = 0; i = 0; j = 0; to = 0
		}
	}
	od
}
