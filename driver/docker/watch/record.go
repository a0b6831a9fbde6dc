// SPDX-License-Identifier: Apache-2.0

package watch

import (
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/moby/moby/api/types/events"

	"github.com/mustang-net/mustang/service"
)

// record is what is known of a container: the last inspect, and what events have told since.
type record struct {
	id    string
	seq   uint64 // of the last event; an inspect that began before it is out of date
	info  *container
	phase service.Phase // without regard to signals
	// signals were sent in this life of the container and are not known to be survived.
	signals []syscall.Signal
	drain   *time.Timer // when to look whether it has survived
	ended   int         // pid of the process that was seen to end, though inspect may still show it
	revived bool        // it was started by us, or that was tried, since the last list
	stale   bool        // events may have been missed since info

	watched int // pid that exits watches, or has refused to
	unwatch func()

	look lookState
}

// record gives the container's record, making it if need be.
func (w *Watcher) record(id string) *record {
	r := w.records[id]
	if r == nil {
		r = &record{id: id}
		w.records[id] = r
	}
	return r
}

// drop forgets the container; told says that it is to be taken from the services too.
func (w *Watcher) drop(r *record, told bool) {
	r.endLife()
	r.look.stop()
	delete(w.records, r.id)
	if told {
		w.containers.RemoveContainer(r.id)
	}
}

// endLife forgets what belongs to the container's running process.
func (r *record) endLife() {
	r.signals = nil
	if r.drain != nil {
		r.drain.Stop()
		r.drain = nil
	}
	if r.unwatch != nil {
		r.unwatch()
	}
	r.unwatch, r.watched = nil, 0
}

func (w *Watcher) containerEvent(m events.Message) {
	id, action := m.Actor.ID, m.Action
	if strings.HasPrefix(string(action), "exec_") {
		return // every health check makes three of them
	}
	switch action {
	case events.ActionStart:
		w.running[id] = true
		r := w.record(id)
		r.endLife()
		r.ended = 0
		w.look(r)
		return
	case events.ActionCreate:
		w.foresee(id)
		return
	case events.ActionDie:
		delete(w.running, id)
	case events.ActionDestroy:
		delete(w.running, id)
		if r := w.records[id]; r != nil {
			w.drop(r, r.info != nil)
		}
		w.settled(id)
		return
	}
	if r := w.records[id]; r != nil {
		w.change(r, m)
	}
}

// change applies an event to a container that is ours, or may be. What the event itself tells counts
// at once; the rest is looked up.
func (w *Watcher) change(r *record, m events.Message) {
	r.seq++
	switch action := m.Action; action {
	case events.ActionDie:
		r.endLife()
		r.phase = service.PhaseStopped
	case events.ActionPause:
		r.phase = service.PhasePaused
	case events.ActionHealthStatusHealthy, events.ActionHealthStatusUnhealthy:
		if r.phase == service.PhaseStopped || r.phase == service.PhasePaused {
			break // the last words of a check that was running
		}
		_, status, _ := strings.Cut(string(action), ": ")
		r.phase = healthPhase(status)
	case events.ActionKill:
		w.signalled(r, parseSignal(m.Actor.Attributes["signal"]))
	case events.ActionRename:
		if name := m.Actor.Attributes["name"]; name != "" && r.info != nil {
			r.info.Name = "/" + strings.TrimPrefix(name, "/")
		}
		w.look(r)
		return
	case events.ActionUnPause, events.ActionStop, events.ActionOOM, events.ActionRestart:
		// What has become of it is in the inspect: after unpause the health, after an OOM kill of some
		// process perhaps a container as before.
		w.look(r)
		return
	default:
		return
	}
	w.publish(r)
}

// signalled starts draining if the signal is one that ends containers, and looks later whether it did.
func (w *Watcher) signalled(r *record, sig syscall.Signal) {
	if sig == 0 {
		return
	}
	if !slices.Contains(r.signals, sig) {
		r.signals = append(r.signals, sig)
	}
	w.awaitEnd(r)
}

// awaitEnd has a draining container looked at when a stop would have killed it.
func (w *Watcher) awaitEnd(r *record) {
	if !r.draining() {
		return
	}
	after := w.timing.stop
	if r.info != nil && r.info.Config.StopTimeout != nil {
		if *r.info.Config.StopTimeout < 0 {
			return // the user lets it take for ever
		}
		after = max(after, time.Duration(*r.info.Config.StopTimeout)*time.Second)
	}
	if r.drain != nil {
		r.drain.Stop()
	}
	r.drain = time.AfterFunc(after+w.timing.drainMore, func() {
		w.post(func() { w.survived(r) })
	})
}

// survived ends draining: had the signal been a stop, the engine would have killed by now. A `docker
// stop` with a longer time-out of its own cannot be told from that.
func (w *Watcher) survived(r *record) {
	if w.records[r.id] != r || r.drain == nil {
		return
	}
	r.drain, r.signals = nil, nil
	w.look(r)
}

// draining is decided late, because the stop signal is known by inspect only.
func (r *record) draining() bool {
	for _, sig := range r.signals {
		if sig == syscall.SIGKILL || r.info != nil && sig == stopSignal(*r.info) {
			return true
		}
	}
	return false
}

// inspected takes a result that no event has outdated.
func (w *Watcher) inspected(r *record, c container) {
	if w.attachments(c) == nil {
		w.drop(r, r.info != nil)
		w.settled(r.id)
		return
	}
	if r.stale && r.info != nil && r.info.State.Pid != c.State.Pid {
		r.endLife() // it was started again unseen
	}
	r.stale = false
	r.info = &c
	r.phase = phaseOf(c)
	if c.State.Pid != 0 && c.State.Pid == r.ended {
		r.phase = service.PhaseStopped
	}
	if r.phase == service.PhaseStopped {
		r.endLife()
	}
	if r.draining() && r.drain == nil {
		w.awaitEnd(r) // the signal came before it was known to be the stop signal
	}
	w.publish(r)
	w.watchProcess(r)
	w.settled(r.id)
	w.revive(r)
}

// attachments gives those on our networks, nil if there is none. One of a container that is not
// running has no endpoint.
func (w *Watcher) attachments(c container) []*attachment {
	var out []*attachment
	for name, a := range c.NetworkSettings.Networks {
		if a != nil && w.isOurs(a.NetworkID, name) {
			out = append(out, a)
		}
	}
	return out
}

// networksOf are the ids of those that are ours.
func (w *Watcher) networksOf(attachments map[string]*attachment) []string {
	var out []string
	for id, name := range w.networks {
		for on, a := range attachments {
			if a != nil && (a.NetworkID == id || a.NetworkID == "" && on == name) {
				out = append(out, id)
			}
		}
	}
	slices.Sort(out)
	return out
}

// isOurs goes by the name where a container that never ran has no network id yet.
func (w *Watcher) isOurs(id, name string) bool {
	if id != "" {
		_, ok := w.networks[id]
		return ok
	}
	for _, n := range w.networks {
		if n == name {
			return true
		}
	}
	return false
}

// publish tells of the container as it stands.
func (w *Watcher) publish(r *record) {
	if r.info == nil {
		return // not looked at yet, so perhaps not ours
	}
	phase := r.phase
	switch phase {
	case service.PhaseReady, service.PhaseStarting, service.PhaseUnhealthy:
		if r.draining() {
			phase = service.PhaseDraining
		}
	}
	aliases, priorities := make(map[string][]string), make(map[string]int)
	for _, a := range w.attachments(*r.info) {
		if a.EndpointID != "" {
			aliases[a.EndpointID] = cleanAliases(*r.info, a.Aliases)
			priorities[a.EndpointID] = a.GwPriority
		}
	}
	c := r.facts(phase)
	c.Aliases, c.Priorities = aliases, priorities
	w.containers.PutContainer(c)
}

// facts are what is told of a container whatever its endpoints are.
func (r *record) facts(phase service.Phase) service.Container {
	return service.Container{
		ID:      r.id,
		Name:    strings.TrimPrefix(r.info.Name, "/"),
		Phase:   phase,
		Labels:  ownLabels(r.info.Config.Labels),
		Started: r.info.State.StartedAt,
		Source:  service.SourceDocker,
	}
}

// watchProcess has the container's process watched, where it can be seen.
func (w *Watcher) watchProcess(r *record) {
	pid := r.info.State.Pid
	if w.exits == nil || pid <= 0 || r.phase == service.PhaseStopped || r.watched == pid {
		return
	}
	if r.unwatch != nil {
		r.unwatch()
	}
	stop, err := w.exits.add(pid, r.id, func() { w.post(func() { w.processEnded(r, pid) }) })
	r.watched, r.unwatch = pid, stop
	if err != nil {
		w.log.WithField("container", r.id).WithError(err).Debug("not watching the container's process")
	}
}

// processEnded comes some 100 ms before the engine's die event.
func (w *Watcher) processEnded(r *record, pid int) {
	if w.records[r.id] != r || r.watched != pid || r.info == nil {
		return
	}
	for _, a := range w.attachments(*r.info) {
		if a.EndpointID != "" {
			w.containers.Gone(a.EndpointID)
		}
	}
	r.seq++
	r.endLife()
	r.ended = pid
	r.phase = service.PhaseStopped
	w.publish(r)
}
