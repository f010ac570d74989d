"""Work of every kind, in turns, until somebody says that it is enough: what is killed meanwhile must not show.

Run as a script by :mod:`tests.chaos.test_many_kills`, with ``FOLDER`` and ``BACKEND`` known. Every task writes down
when it begins, and holds a lock while it runs: two attempts of one task never run at a time.
"""

SCRIPT = '''
import fcntl, json, threading, traceback
from collections import Counter

PATIENCE = 150.0

def note(name, *what):
    line = " ".join(map(str, (*what, time.time()))) + "\\n"
    fd = os.open(f"{FOLDER}/{name}", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    os.write(fd, line.encode())
    os.close(fd)

def work(key, seconds=0.002):
    fd = os.open(f"{FOLDER}/locks/{key}", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        note("overlaps", key)
    note("ran", key)
    time.sleep(seconds)
    os.close(fd)
    return f"<{key}>"

def nested(key):
    note("ran", key)
    inner = ph.current_session().options(retries=50)
    return inner.map(work, [f"{key}-{at}" for at in range(4)]).results()

class Twice:
    def __call__(self, item):
        return item * 2

LINE = f"""exec 9>{FOLDER}/locks/$0
flock -n 9 || echo $0 $(date +%s.%N) >> {FOLDER}/overlaps
echo $0 $(date +%s.%N) >> {FOLDER}/ran
sleep $1
echo "<$0>" """

def program(key, seconds=0.05, **more):
    # The locks of a shell are inherited by what it starts, which is killed with it.
    return ph.TaskDescription(executable="/bin/sh", arguments=["-c", LINE, key, str(seconds)], **more)

def said(future):
    """Why it waits, in words; what keeps the hub from saying it is told elsewhere."""
    try:
        return future.explain()
    except ph.PilotHitlError as error:
        return str(error)

RESULTS, LOST, WRONG = Counter(), Counter(), []

def take(kind, key, future, expected):
    try:
        value = future.result(PATIENCE)
    except (ph.TaskLost, ph.WorkerDied, ph.TaskFailed) as error:
        if kind.startswith("outside"):
            LOST[kind] += 1
            return
        WRONG.append(f"{key}: {type(error).__name__}: {error}")
        return
    except BaseException as error:
        WRONG.append(f"{key}: {type(error).__name__}: {error} | {said(future)}")
        return
    if isinstance(value, ph.Completed):
        value = value.stdout.strip()
    note("returned", key)
    if value != expected:
        WRONG.append(f"{key}: {value!r} instead of {expected!r}")
    RESULTS[kind] += 1

def ask(service, over):
    number = 0
    while not over.is_set():
        number += 1
        try:
            value = service.request(number).result(PATIENCE)
            if value != 2 * number:
                WRONG.append(f"request {number}: {value!r}")
            RESULTS["requests"] += 1
        except BaseException as error:
            WRONG.append(f"request {number}: {type(error).__name__}: {error}")
        over.wait(0.02)

def turn(session, n):
    steady = session.options(retries=50)
    outside = session.options(effects="outside")
    waiting = []
    gate = session.checkpoint("gate", question="a or b?", choices=["a", "b"], iteration=n)
    for answer in "ab":
        branch = gate.branch(answer).options(retries=50)
        keys = [f"{n}-branch-{answer}-{at}" for at in range(4)]
        waiting.append((answer, keys, branch.map(work, keys)))
    for at in range(20):
        key = f"{n}-call-{at}"
        waiting.append(("calls", key, steady.call(work, key)))
    for at in range(2):
        key = f"{n}-long-{at}"
        waiting.append(("calls", key, steady.call(work, key, 0.3)))
        key = f"{n}-outside-{at}"
        waiting.append(("outside calls", key, outside.call(work, key, 0.05)))
        key = f"{n}-nested-{at}"
        waiting.append(("nested", key, steady.call(nested, key)))
    keys = [f"{n}-map-{at}" for at in range(40)]
    mapped = steady.map(work, keys)
    waiting += [("maps", key, mapped[at]) for at, key in enumerate(keys)]
    for at in range(5):
        # The first one lasts, so that it can be found among all processes of a busy machine.
        key = f"{n}-program-{at}"
        waiting.append(("programs", key, session.submit(program(key, 2 if at == 0 else 0.02, retries=50))))
    key = f"{n}-outside-program"
    waiting.append(("outside programs", key, session.submit(program(key, effects="outside"))))
    for kind, key, future in waiting:
        if kind == "nested":
            take(kind, key, future, [f"<{key}-{at}>" for at in range(4)])
        elif kind not in "ab":
            take(kind, key, future, f"<{key}>")
    try:
        chosen = gate.result(PATIENCE)
    except BaseException as error:
        WRONG.append(f"gate {n}: {type(error).__name__}: {error} | {said(gate)}")
        return
    RESULTS["answers"] += 1
    for answer, keys, branch in waiting[:2]:
        for key, future in zip(keys, branch, strict=True):
            if answer == chosen:
                take("branches", key, future, f"<{key}>")
                continue
            try:
                future.result(PATIENCE)
                WRONG.append(f"{key} has a result")
            except ph.Discarded:
                RESULTS["discarded"] += 1
            except BaseException as error:
                WRONG.append(f"{key}: {type(error).__name__}: {error} | {said(future)}")

os.makedirs(f"{FOLDER}/locks", exist_ok=True)
with ph.Session("mixed") as session:
    session.submit_pilot(ph.PilotDescription(resource=BACKEND, cores=3))
    service = session.start_service(ph.ServiceDescription(name="twice", handler=Twice, backoff=0.05, restarts=1000))
    over = threading.Event()
    asking = threading.Thread(target=ask, args=(service, over))
    asking.start()
    n = 0
    try:
        while not os.path.exists(f"{FOLDER}/enough") and not WRONG:
            n += 1
            turn(session, n)
            note("turns", n)
    finally:
        over.set()
        asking.join()
print(json.dumps({"turns": n, "results": RESULTS, "lost": LOST, "wrong": WRONG}))
'''
