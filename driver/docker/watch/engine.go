// SPDX-License-Identifier: Apache-2.0

package watch

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Reasons not to connect. Where the service manager holds the engine's socket, who connects starts an engine that was
// stopped, and who waits at the socket of one that is stopping starts it again.
var (
	errNotRunning = errors.New("no engine runs (there is no process dockerd)")
	errStopping   = errors.New("the engine is stopping")
)

// stopTime is longer than an engine takes to stop: one that has hung up and is there after it has done so for another reason.
const stopTime = time.Minute

// EngineProcess is the id of the host's engine's process, 0 if none runs. Engines inside containers are others.
func EngineProcess() int {
	host, err := os.Readlink("/proc/1/ns/pid")
	names, globErr := filepath.Glob("/proc/[0-9]*/comm")
	if err != nil || globErr != nil {
		return 0
	}
	for _, name := range names {
		comm, err := os.ReadFile(name)
		if err != nil || strings.TrimSpace(string(comm)) != "dockerd" {
			continue
		}
		dir := filepath.Dir(name)
		if ns, err := os.Readlink(filepath.Join(dir, "ns/pid")); err == nil && ns == host {
			pid, _ := strconv.Atoi(filepath.Base(dir)) // digits, by the pattern
			return pid
		}
	}
	return 0
}

// followed is the engine as it was last followed.
type followed struct {
	pid  int
	lost time.Time // when its events ended
}

// mayConnect finds the engine's process, and says why it is not to be connected to.
func (w *Watcher) mayConnect() error {
	if w.engine == nil {
		return nil
	}
	pid := w.engine()
	switch {
	case pid == 0:
		return errNotRunning
	case pid == w.last.pid && time.Since(w.last.lost) < stopTime:
		return errStopping
	}
	w.last = followed{pid: pid}
	return nil
}
