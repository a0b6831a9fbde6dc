// SPDX-License-Identifier: Apache-2.0

package scenarios

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/mustang-net/mustang/tests/steps"
)

const (
	// fewKills is at how many steps of an operation mustang is killed where $KILLS does not say.
	fewKills = 2
	// convergeTime is how long a start may take until nothing differs from what is wanted any more.
	convergeTime = 10 * time.Second
	// forgetTime is how long a lease may stay that the engine has given back to a daemon which was killed meanwhile.
	forgetTime = 90 * time.Second
)

// walk is operations during which mustang is killed at one step after another.
type walk struct {
	s        *scenario
	ts       *testscript.TestScript
	dir      string
	steps    *steps.Steps
	baseline []string
	served   bool   // by a daemon
	restarts bool   // that is restarted, and by nobody else
	where    string // it is now
}

// kills has operations run again and again, and kills mustang, the daemon or a command, at one of its steps each time:
//
//	kills DO UNDO [CHECK]    files with shell scripts, which succeed too where there is nothing to do, or the half of it is done
//	kills restart [CHECK]    the daemon is restarted
//
// The step that mustang is killed at is made; see the package steps. A daemon is started again, as a service manager would. Then by turns the
// operation must succeed, and CHECK, or `mustang verify` find no difference; and after UNDO everything is as it was before. UNDO is killed
// likewise.
//
// $KILLS says at how many steps of each, `all`, or `at:N` for step N alone.
func (s *scenario) kills(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 || len(args) > 3 || args[0] != "restart" && len(args) < 2 {
		ts.Fatalf("usage: kills DO UNDO [CHECK], kills restart [CHECK]")
	}
	w := &walk{s: s, ts: ts, dir: ts.MkAbs("."), served: run("/", "pgrep", "-x", "mustang").err == nil}
	var err error
	w.baseline, err = snapshot()
	ts.Check(err)
	w.steps, err = steps.Watch("mustang")
	ts.Check(err)
	defer w.steps.Close()
	if args[0] == "restart" {
		w.restarts = true
		check := w.script(args[1:])
		w.each("restart", w.script(nil), w.daemon("restart"), func(bool) { w.must(check, w.verify, w.same) })
	} else {
		do, undo, check := w.script(args[:1]), w.script(args[1:2]), w.script(args[2:])
		w.each(args[0], w.script(nil), do, func(again bool) {
			if again {
				w.must(do, check, w.verify)
			} else {
				w.converge()
			}
			w.must(undo, w.same)
		})
		w.each(args[1], do, undo, func(again bool) {
			if !again {
				w.converge()
			}
			w.must(undo, w.same)
		})
	}
	if unknown := w.steps.Unknown(); len(unknown) > 0 {
		ts.Fatalf("mustang makes system calls that tests/steps/calls.go does not know: say there whether numbers %v of amd64 change something", unknown)
	}
}

// each runs an operation once to count its steps, and then once for each step that mustang is to be killed at. then is what follows, with the operation
// run again or without.
func (w *walk) each(name string, before, operation func() result, then func(again bool)) {
	w.where = name
	w.must(before)
	w.ts.Check(w.steps.Arm(0))
	r := operation()
	total, _, err := w.steps.Made()
	w.ts.Check(err)
	w.must(func() result { return r })
	then(true)
	points, both := w.points(total)
	killed := 0
	for i := 0; i < len(points) || both; i++ {
		at := i + 1
		if !both {
			at = points[i]
		}
		for _, again := range []bool{true, false} {
			if !both && again != (i%2 == 0) || both && w.restarts && !again {
				continue
			}
			w.where = name
			w.must(before)
			dead := w.killAt(at, operation)
			then(again)
			if !dead { // it made fewer steps this time
				both = false
				break
			}
			killed++
		}
	}
	if killed == 0 {
		w.ts.Fatalf("%s: %d steps were counted, and mustang was never killed", name, total)
	}
	f := figures{promise: "kill-points"}
	f.state(w.s.name+", "+name, fmt.Sprintf("%d steps, killed %d times", total, killed))
	r = f.result(nil)
	w.ts.Check(r.err)
	fmt.Print(r.stdout)
}

// points are the steps to kill at; all, and each in both ways, if both is true.
func (w *walk) points(total int) (at []int, both bool) {
	kills, number := os.Getenv("KILLS"), fewKills
	if kills == "all" {
		return nil, true
	}
	if one, ok := strings.CutPrefix(kills, "at:"); ok {
		n, err := strconv.Atoi(one)
		w.ts.Check(err)
		return []int{n, n}, false
	}
	if kills != "" {
		n, err := strconv.Atoi(kills)
		w.ts.Check(err)
		number = n
	}
	number = min(number, total)
	for i := range number {
		at = append(at, 1+(2*i+1)*total/(2*number))
	}
	return at, false
}

// killAt runs an operation, which may fail, and tells whether mustang was killed at the step.
func (w *walk) killAt(at int, operation func() result) bool {
	w.ts.Check(w.steps.Arm(at))
	done := make(chan result)
	go func() { done <- operation() }()
	killed, running := 0, true
	for running {
		select {
		case <-done:
			running = false
		case <-time.After(2 * time.Millisecond):
		}
		if killed == 0 {
			var err error
			_, killed, err = w.steps.Made()
			w.ts.Check(err)
		}
		if killed != 0 && running && !w.restarts { // an engine that calls a daemon waits for the next one
			w.revive()
		}
	}
	if killed != 0 {
		for end := time.Now().Add(patience(convergeTime)); alive(killed) && time.Now().Before(end); {
			time.Sleep(time.Millisecond)
		}
		w.revive()
		if w.served {
			w.must(w.ready)
		}
		w.where += fmt.Sprintf(", killed at step %d, %s", at, w.steps.Name(at))
	}
	w.ts.Check(w.steps.Arm(0))
	return killed != 0
}

// revive starts the daemon if it was killed.
func (w *walk) revive() {
	text, err := os.ReadFile("/run/mustang-daemon.pid")
	w.ts.Check(err)
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	w.ts.Check(err)
	if w.served && !alive(pid) {
		w.must(w.daemon("start"))
	}
}

func alive(pid int) bool {
	_, err := os.Stat(fmt.Sprintf("/proc/%d", pid))
	return err == nil
}

func (w *walk) daemon(verb string) func() result {
	return func() result { return run("/", fakehost(), "daemon", verb) }
}

func (w *walk) ready() result { return run("/", "mustang", "status", "--wait=30s") }

// script is a file of the scenario's; without one it does nothing.
func (w *walk) script(file []string) func() result {
	if len(file) == 0 {
		return func() result { return result{} }
	}
	return func() result { return run(w.dir, "env", "CHECKOUT="+checkout(""), "sh", "-eu", file[0]) }
}

// converge asserts that the next start of a daemon mends what the killed one has left half done.
func (w *walk) converge() {
	if w.served {
		w.must(w.verify)
	} else {
		w.must(w.daemon("start"), w.ready, w.verify, w.daemon("stop"))
	}
}

// verify waits until nothing differs from what is wanted: what the engine is doing may not have ended.
func (w *walk) verify() result {
	for end := time.Now().Add(patience(convergeTime)); ; time.Sleep(patience(50 * time.Millisecond)) {
		if r := run("/", "mustang", "verify"); r.err == nil || time.Now().After(end) {
			return r
		}
	}
}

// same asserts that everything is as it was before the first operation. Without a daemon, the next one may have to come first.
func (w *walk) same() result {
	if !w.served && len(leftovers(w.baseline, 0)) > 0 {
		w.must(w.daemon("start"), w.ready, w.daemon("stop"))
	}
	if left := leftovers(w.baseline, forgetTime); len(left) > 0 {
		return failure("there is\n  %s", strings.Join(left, "\n  "))
	}
	return result{}
}

// must runs what must succeed.
func (w *walk) must(all ...func() result) {
	for _, do := range all {
		if r := do(); r.err != nil {
			r.show(w.ts)
			w.ts.Fatalf("%s: %v", w.where, r.err)
		}
	}
}
