// SPDX-License-Identifier: Apache-2.0

package watch

import (
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/mustang-net/mustang/service"
)

const labelPrefix = "mustang."

// shortID is the length of the ids that engines before 25 put among the aliases.
const shortID = 12

// phaseOf is where the container stands by inspect alone, which does not know of signals.
func phaseOf(c container) service.Phase {
	s := c.State
	switch {
	// While it waits for its next restart a container counts as running, without a process.
	case !s.Running, s.Restarting, s.Dead:
		return service.PhaseStopped
	case s.Paused:
		return service.PhasePaused
	case s.Health == nil:
		return service.PhaseReady
	}
	return healthPhase(s.Health.Status)
}

func healthPhase(status string) service.Phase {
	switch status {
	case "starting":
		return service.PhaseStarting
	case "unhealthy":
		return service.PhaseUnhealthy
	}
	return service.PhaseReady // healthy, none, or no check at all
}

// ownLabels leaves the labels that are for mustang.
func ownLabels(labels map[string]string) map[string]string {
	out := make(map[string]string)
	for k, v := range labels {
		if strings.HasPrefix(k, labelPrefix) {
			out[k] = v
		}
	}
	return out
}

// cleanAliases leaves of an endpoint's aliases the names that several containers may share: not the
// container's own name and not its id.
//
// Engines before 25 append the short id and then the hostname, the latter only if it is not an alias
// already. So a hostname in front of the short id was asked for as an alias by the user, one behind it
// was not. Later engines keep both elsewhere, but a container made by an old engine keeps its list.
func cleanAliases(c container, aliases []string) []string {
	name := strings.TrimPrefix(c.Name, "/")
	out := []string{}
	pastID := false
	for _, a := range aliases {
		switch {
		case a == "", strings.EqualFold(a, name):
			continue
		case len(a) >= shortID && strings.HasPrefix(c.ID, strings.ToLower(a)):
			pastID = true
			continue
		case pastID && strings.EqualFold(a, c.Config.Hostname):
			continue
		}
		if !slices.ContainsFunc(out, func(b string) bool { return strings.EqualFold(a, b) }) {
			out = append(out, a)
		}
	}
	return out
}

// parseSignal reads a signal as the engine takes it: 15, TERM, SIGTERM or sigterm, and the real-time
// signals' RTMIN+n and RTMAX-n. 0 means not understood.
func parseSignal(s string) syscall.Signal {
	s = strings.ToUpper(strings.TrimSpace(s))
	if n, err := strconv.Atoi(s); err == nil {
		return max(syscall.Signal(n), 0)
	}
	s = strings.TrimPrefix(s, "SIG")
	if sig := unix.SignalNum("SIG" + s); sig != 0 {
		return sig
	}
	// glibc's numbering, which is the engine's: RTMIN is 34 and RTMAX 64.
	for base, first := range map[string]int{"RTMIN": 34, "RTMAX": 64} {
		if rest, ok := strings.CutPrefix(s, base); ok {
			n, err := strconv.Atoi(rest)
			if sig := first + n; (err == nil || rest == "") && sig >= 34 && sig <= 64 {
				return syscall.Signal(sig)
			}
		}
	}
	return 0
}

// stopSignal is what `docker stop` sends first.
func stopSignal(c container) syscall.Signal {
	if sig := parseSignal(c.Config.StopSignal); sig != 0 {
		return sig
	}
	return syscall.SIGTERM
}

// isDriver tells mustang's own networks: the driver is called name, or by a managed plugin's
// reference with that name, such as mustang:latest or registry.example/mustang:1.2.
func isDriver(driver, name string) bool {
	driver = driver[strings.LastIndex(driver, "/")+1:]
	driver, _, _ = strings.Cut(driver, ":")
	return driver == name
}
