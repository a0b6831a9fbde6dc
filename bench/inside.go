// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/mustang-net/mustang/driver/link"
)

// inside measures, as process 1 of the namespaces that Run made: when it ends, everything of it does.
func inside(stdin io.Reader) error {
	events := os.NewFile(eventsFD, "events")
	if events == nil {
		return errors.New("it is a part of `mustang bench`, which starts it")
	}
	w := &work{out: json.NewEncoder(events)}
	if err := json.NewDecoder(stdin).Decode(&w.job); err != nil {
		return fmt.Errorf("read what is to be measured: %w", err)
	}
	if err := w.measure(); err != nil {
		w.tell(event{Error: err.Error()})
		return err
	}
	w.tell(event{Done: true})
	return nil
}

// work is one measurement.
type work struct {
	job
	out    *json.Encoder
	meters *meters
	pairs  []*pair
	hosts  []sandbox // of the plain pairs; with the descriptor the namespace would go
}

// tell does not fail: without a reader we are about to be killed.
func (w *work) tell(e event) { _ = w.out.Encode(e) }

func (w *work) measure() error {
	if err := mountOwn(); err != nil {
		return err
	}
	var note string
	var err error
	if w.meters, note, err = newMeters(w.Options); err != nil {
		return err
	}
	w.tell(event{Note: note})
	if err := w.build(); err != nil {
		return err
	}
	if err := w.serve(); err != nil {
		return err
	}
	tasks := w.tasks()
	w.tell(event{Steps: len(tasks)})
	for _, t := range tasks {
		w.tell(event{Step: t.String() + ": " + t.name})
		if err := w.run(t); err != nil {
			return fmt.Errorf("measure %s: %w", t.side, err)
		}
	}
	return nil
}

// bpffs is where our own pins are.
const bpffs = "/tmp/bpf"

// mountOwn puts filesystems of our own over what belongs to the user, in our mount namespace.
func mountOwn() error {
	for _, m := range []struct{ kind, on, data string }{
		{"proc", "/proc", ""}, {"tmpfs", "/tmp", "mode=0700"}, {"bpf", bpffs, "mode=0700"},
	} {
		if err := os.MkdirAll(m.on, 0o700); err != nil {
			return fmt.Errorf("make %s: %w", m.on, err)
		}
		err := unix.Mount(m.kind, m.on, m.kind, 0, m.data)
		if errors.Is(err, unix.ENODEV) && m.kind == "bpf" {
			continue // a kernel without; whoever needs it will say so
		}
		if err != nil {
			return fmt.Errorf("mount %s on %s: %w", m.kind, m.on, err)
		}
	}
	if err := os.Setenv("TMPDIR", "/tmp"); err != nil { // where iperf3 keeps its buffer
		return err
	}
	return link.Host{}.SetUp("lo")
}

// build makes all pairs: they are measured in turns.
func (w *work) build() error {
	loop, err := newLoopback()
	if err != nil {
		return err
	}
	w.pairs = append(w.pairs, loop)
	var e *engine
	if w.EBPF != "off" {
		if e, err = newEngine(bpffs, fmt.Sprintf("/proc/self/fd/%d", cgroupFD)); err != nil {
			return err
		}
	}
	for _, mode := range w.Modes {
		if w.EBPF != "on" {
			if err := w.buildPlain(mode); err != nil {
				return err
			}
		}
		if e == nil {
			continue
		}
		p, err := e.pair(mode)
		if err != nil {
			return err
		}
		w.pairs = append(w.pairs, p)
	}
	for _, d := range w.Docker {
		p, err := d.inherit()
		if err != nil {
			return err
		}
		w.pairs = append(w.pairs, p)
	}
	return nil
}

func (w *work) buildPlain(mode string) error {
	p, host, err := newPlain(mode)
	if err != nil {
		return err
	}
	w.pairs, w.hosts = append(w.pairs, p), append(w.hosts, host)
	// before the direct path is measured, too: with a rule loaded conntrack sees it
	if err := p.prepare(viaNftables, 1); err != nil {
		w.tell(event{Note: fmt.Sprintf("plain %s is measured without a VIP: %v", mode, err)})
		p.vip, p.prepare = netip.Addr{}, nil
	}
	return nil
}

// serve starts the servers and waits for them.
func (w *work) serve() error {
	for _, p := range w.pairs {
		if err := w.meters.serve(p.server); err != nil {
			return err
		}
	}
	for _, p := range w.pairs {
		for _, s := range p.sides() {
			if err := w.meters.await(p, s.Path); err != nil {
				return fmt.Errorf("%s does not answer: %w", s, err)
			}
		}
	}
	return nil
}

// task is one run of one side.
type task struct {
	*pair
	side
	name string
	run  func(*meters, *pair, string) (measured, error)
}

// tasks are all runs in their order: each round goes through the sides forth or back, in turns, so that a drift of
// the machine meets all alike.
func (w *work) tasks() []task {
	var out []task
	for round := range w.Runs {
		for _, r := range runs {
			var turn []task
			for _, p := range w.pairs {
				for _, s := range p.sides() {
					turn = append(turn, task{p, s, r.name, r.run})
				}
			}
			out = append(out, forthOrBack(turn, round)...)
		}
	}
	return append(out, w.scaleTasks()...)
}

func forthOrBack(turn []task, round int) []task {
	if round%2 == 1 {
		slices.Reverse(turn)
	}
	return turn
}

// scaleTasks measure the rate of connections beside one and beside many services.
func (w *work) scaleTasks() []task {
	if w.Services == 0 {
		return nil
	}
	_, noIptables := exec.LookPath(iptablesRestore)
	var out []task
	for round := range w.Runs {
		for _, p := range w.pairs {
			if p.prepare == nil {
				continue
			}
			vias := []string{p.via()}
			if !p.ebpf && noIptables == nil {
				vias = append(vias, viaIptables)
			}
			var turn []task
			for _, via := range vias {
				for _, n := range []int{1, w.Services} {
					s := side{Mode: p.mode, EBPF: p.ebpf, Path: pathVIP, Via: via, Services: n}
					turn = append(turn, task{p, s, "TCP_CRR", (*meters).connections})
				}
			}
			out = append(out, forthOrBack(turn, round)...)
		}
	}
	return out
}

// retries are how often a run is repeated that failed: a machine that stood still for a while must not cost an hour.
const retries = 2

func (w *work) run(t task) error {
	if t.prepare != nil && t.Path == pathVIP {
		if err := t.prepare(t.Via, max(t.Services, 1)); err != nil {
			return err
		}
		runtime.GC() // now, and not beside the run
	}
	values, err := t.run(w.meters, t.pair, t.Path)
	for again := 0; err != nil && again < retries; again++ {
		w.tell(event{Note: fmt.Sprintf("%s: %s was repeated: %v", t, t.name, err)})
		values, err = t.run(w.meters, t.pair, t.Path)
	}
	if err != nil {
		return err
	}
	var samples []sample
	for metric, v := range values {
		samples = append(samples, sample{t.side, metric, v})
	}
	w.tell(event{Samples: samples})
	return nil
}
