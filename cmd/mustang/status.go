// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/mustang-net/mustang/api"
)

const (
	defaultWait = time.Minute
	// statusEvery is how often --wait looks again.
	statusEvery = 200 * time.Millisecond
	// withoutDaemonEvery is how often it opens the state itself, which a daemon that starts wants to have meanwhile.
	withoutDaemonEvery = time.Second
)

// waitFlag is --wait with an optional duration: 0 is no waiting.
type waitFlag struct{ time.Duration }

// IsBoolFlag lets --wait stand without a value, which the flag package then sets to "true".
func (*waitFlag) IsBoolFlag() bool { return true }

func (w *waitFlag) Set(text string) error {
	if text == "true" {
		w.Duration = defaultWait
		return nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d <= 0 {
		return errors.New("give a duration such as 30s, or none for " + defaultWait.String())
	}
	w.Duration = d
	return nil
}

// String is "" while nothing is set, so that the help shows no default.
func (w *waitFlag) String() string {
	if w.Duration == 0 {
		return ""
	}
	return w.Duration.String()
}

func statusCommand(e env) *cli.Command {
	wait := &waitFlag{}
	forms := []string{"table", "json", "yaml"}
	return verb{
		name: "status", usage: "say whether mustang is ready, and how its parts are",
		about: "The exit code is 0 only if mustang is ready.",
		flags: append(outputFlags(forms), quietFlag("print no table: the exit code tells, and an error"),
			&cli.GenericFlag{Name: "wait", Value: wait, Usage: "wait until ready: at most " + defaultWait.String() + ", or the `DURATION` after =, as in --wait=30s"}),
		run: func(c *cli.Context) error {
			o, err := outputOf(c, e, forms)
			if err != nil {
				return err
			}
			s, err := e.awaitStatus(c, wait.Duration)
			if err != nil {
				return err
			}
			if err := printStatus(o, s); err != nil {
				return err
			}
			if s.Ready {
				return nil
			}
			return fmt.Errorf("mustang is not ready%s", reasons(s))
		},
	}.command()
}

// awaitStatus asks until mustang is ready or wait is over, and returns the last answer.
func (e env) awaitStatus(c *cli.Context, wait time.Duration) (api.Status, error) {
	if wait == 0 {
		return e.status(c)
	}
	ctx, cancel := context.WithTimeout(c.Context, wait)
	defer cancel()
	c.Context = ctx
	last, lastErr := e.status(c)
	for {
		_, usage := errors.AsType[*usageError](lastErr)
		if usage || lastErr == nil && last.Ready {
			return last, lastErr
		}
		every := statusEvery
		if lastErr == nil && !last.Daemon {
			every = withoutDaemonEvery
		}
		select {
		case <-ctx.Done():
			return last, lastErr
		case <-time.After(every):
		}
		// An answer that the end of the wait cut off tells less than the one before it.
		if s, err := e.status(c); ctx.Err() == nil || err == nil {
			last, lastErr = s, err
		}
	}
}

// status opens the Host anew each time: the daemon may come, go or be replaced while we wait.
func (e env) status(c *cli.Context) (s api.Status, err error) {
	err = e.host(c, func(ctx context.Context, h api.Host) error {
		var err error
		s, err = h.Status(ctx)
		return err
	})
	return s, err
}

func printStatus(o output, s api.Status) error {
	switch {
	case o.template != nil:
		return o.execute(s)
	case o.quiet:
		return nil
	case o.form != "table":
		return o.encode(s)
	}
	t := table{
		title:   fmt.Sprintf("Mustang Status ready:%s daemon:%s version:%s", strconv.FormatBool(s.Ready), strconv.FormatBool(s.Daemon), s.Version),
		columns: []column{{"Subsystem", 16}, {"State", 16}, {"Detail", 0}},
	}
	for _, part := range s.Subsystems {
		t.rows = append(t.rows, []string{part.Name, part.State, part.Detail})
	}
	return t.write(o.w)
}

// reasons names the parts that are not as they should be.
func reasons(s api.Status) string {
	text := ""
	for _, part := range s.Subsystems {
		if part.State == "failed" || part.State == "degraded" || part.Name == "daemon" {
			text += fmt.Sprintf(": %s is %s (%s)", part.Name, part.State, part.Detail)
		}
	}
	return text
}
