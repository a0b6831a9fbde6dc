// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
)

// job is what the copy inside the namespaces is to do, as it reads it from its standard input.
type job struct {
	Options
	Modes  []string     // that the kernel offers, of those asked for
	Docker []dockerPair // whose namespaces follow as descriptors
}

// dockerPair is two containers of one of Docker's networks.
type dockerPair struct {
	Mode                     string
	Server                   netip.Addr
	ClientNetns, ServerNetns int // descriptors
}

// The descriptors that the copy inherits, before those of Docker's namespaces.
const (
	eventsFD = 3
	cgroupFD = 4 // a directory; /dev/null without eBPF
	netnsFD  = 5
)

// side is one way from a client to a server.
type side struct {
	Mode     string
	EBPF     bool
	Path     string
	Via      string
	Services int // preloaded, with --services
}

func (s side) String() string {
	name := s.Mode
	if s.EBPF {
		name += "+eBPF"
	}
	name += " " + s.Path
	if s.Via == viaIptables {
		name += " by " + s.Via
	}
	if s.Services > 0 {
		name += fmt.Sprintf(" beside %d services", s.Services)
	}
	return name
}

// sample is one value of one run.
type sample struct {
	Side   side
	Metric string
	Value  float64
}

// event is one line of what the copy tells.
type event struct {
	Note    string   `json:",omitempty"`
	Steps   int      `json:",omitempty"` // how many runs there will be
	Step    string   `json:",omitempty"` // the run that begins
	Samples []sample `json:",omitempty"` // of the run that ended
	Error   string   `json:",omitempty"`
	Done    bool     `json:",omitempty"`
}

// Progress is told of the runs.
type Progress interface {
	Begin(steps int)
	Step(what string) // that begins
	End()
}

// series are the values of each metric of each side, in the order of the rounds, so that the n-th of two sides were
// taken close to each other.
type series map[side]map[string][]float64

func (s series) add(v sample) {
	if s[v.Side] == nil {
		s[v.Side] = map[string][]float64{}
	}
	s[v.Side][v.Metric] = append(s[v.Side][v.Metric], v.Value)
}

// collect reads events to their end. Half a measurement is an error.
func collect(in io.Reader, p Progress) (series, []string, error) {
	values, notes, done := series{}, []string(nil), false
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		var e event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return nil, nil, fmt.Errorf("read what was measured: %w", err)
		}
		switch {
		case e.Error != "":
			return nil, nil, errors.New(e.Error)
		case e.Note != "":
			notes = append(notes, e.Note)
		case e.Steps > 0:
			p.Begin(e.Steps)
		case e.Step != "":
			p.Step(e.Step)
		}
		for _, v := range e.Samples {
			values.add(v)
		}
		done = done || e.Done
	}
	if err := lines.Err(); err != nil {
		return nil, nil, fmt.Errorf("read what was measured: %w", err)
	}
	if !done {
		return nil, nil, errors.New("the measurement broke off")
	}
	return values, notes, nil
}
