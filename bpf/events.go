// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"
)

// What an [Event] tells of.
const (
	EventDrop   = "drop"   // a packet went nowhere
	EventRefuse = "refuse" // so, and its sender was told; or a socket was refused
	EventNew    = "new"    // a flow has begun
	EventEnd    = "end"    // one of TCP has ended
)

// How a flow travels.
const (
	PathSocket = "socket" // to a backend, translated when its socket connected or sent
	PathDirect = "direct" // a socket's, to an endpoint's own address
	PathPacket = "packet" // to a backend, translated packet by packet
	PathEgress = "egress" // out of the host
)

// Event is one that the programs tell of while somebody watches.
type Event struct {
	Time     time.Time // to some milliseconds
	Kind     string    // EventDrop, EventRefuse, EventNew or EventEnd
	Path     string    // of a flow
	Protocol Protocol
	// From and To are those of who began the flow, as it knows them. What is not known is the zero value:
	// From of a socket that sends datagrams or is refused, both of a packet that could not be parsed.
	From, To netip.AddrPort
	// Via is the backend's address, or for PathEgress the source that the flow leaves with.
	Via     netip.AddrPort
	Service uint32 // [Service.ID], 0 for none
	Backend uint32 // [Backend.ID], 0 for none
	Cookie  uint64 // netns cookie of the socket's sandbox; 0 where a packet was seen
	IfIndex int    // of the device where the packet was seen; 0 for a socket

	Reason, Meaning, Direction string // of a drop or refusal, as in [Drop]
	// Sent and Received are bytes at the end of a socket's stream, by who began it; TCP counts SYN and FIN.
	Sent, Received uint64
}

// watchFor is how long programs tell of events after the last renewal; watchEvery is how often a reader renews.
const (
	watchFor   = 3 * time.Second
	watchEvery = time.Second
)

// ErrWatched says that another process reads the events.
var ErrWatched = errors.New("another process reads the events of this host: end that mustang monitor: with the daemon many can watch")

// Events reads what happens. There is one reader on a host.
type Events struct {
	lock   *os.File // the pin directory, locked
	d      *Datapath
	reader *ringbuf.Reader
	record ringbuf.Record
	since  uint64 // ns: what is older is of an earlier reader
	stop   chan struct{}
	done   chan struct{}
}

// Watch lets the programs tell of events until Close. When the reader is killed they cease after 3 s. The error is
// [ErrWatched] if there is another, in this process or any other.
func (d *Datapath) Watch() (*Events, error) {
	lock, err := os.Open(d.dir)
	if err != nil {
		return nil, fmt.Errorf("open the pin directory: %w", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = ErrWatched
		}
		return nil, errors.Join(fmt.Errorf("lock %s: %w", d.dir, err), lock.Close())
	}
	e, err := d.watch(lock)
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return e, nil
}

func (d *Datapath) watch(lock *os.File) (*Events, error) {
	reader, err := ringbuf.NewReader(d.maps["events"])
	if err != nil {
		return nil, fmt.Errorf("read mst_events: %w", explain(err))
	}
	now, err := monotonic()
	if err != nil {
		return nil, errors.Join(err, reader.Close())
	}
	e := &Events{
		lock: lock, d: d, reader: reader, since: now - uint64(tick),
		stop: make(chan struct{}), done: make(chan struct{}),
	}
	if err := d.watchUntil(now + uint64(watchFor)); err != nil {
		return nil, errors.Join(err, reader.Close())
	}
	go e.renew()
	return e, nil
}

// tick is how late the programs' clock may be.
const tick = 20 * time.Millisecond

func (d *Datapath) watchUntil(deadline uint64) error {
	return d.set(func(cfg *mstConfig) { cfg.Events = deadline })
}

func (e *Events) renew() {
	defer close(e.done)
	ticks := time.NewTicker(watchEvery)
	defer ticks.Stop()
	for {
		select {
		case <-e.stop:
			return
		case <-ticks.C:
			if now, err := monotonic(); err == nil {
				_ = e.d.watchUntil(now + uint64(watchFor)) // the next one is soon
			}
		}
	}
}

// Close ends the reading, and the programs' telling.
func (e *Events) Close() error {
	close(e.stop)
	<-e.done
	return errors.Join(e.d.watchUntil(0), e.reader.Close(), e.lock.Close())
}

// Read waits for the next event. The error is [os.ErrClosed] after Close.
func (e *Events) Read() (Event, error) {
	for {
		if err := e.reader.ReadInto(&e.record); err != nil {
			if errors.Is(err, os.ErrClosed) {
				return Event{}, err
			}
			return Event{}, fmt.Errorf("read mst_events: %w", err)
		}
		var raw mstEvent
		if err := binary.Read(bytes.NewReader(e.record.RawSample), binary.NativeEndian, &raw); err != nil {
			return Event{}, fmt.Errorf("read mst_events: an event of %d bytes is of another build: %w", len(e.record.RawSample), err)
		}
		if raw.Time < e.since {
			continue
		}
		return eventOf(raw), nil
	}
}

// timeOf is when an event was by the host's clock, which may be set meanwhile.
func timeOf(event uint64) time.Time {
	now, err := monotonic()
	if err != nil {
		return time.Now()
	}
	return time.Now().Add(time.Duration(event) - time.Duration(now))
}

var (
	eventKinds = map[uint8]string{eventDrop: EventDrop, eventRefuse: EventRefuse, eventNew: EventNew, eventEnd: EventEnd}
	eventPaths = map[uint8]string{pathSocket: PathSocket, pathDirect: PathDirect, pathPacket: PathPacket, pathEgress: PathEgress}
)

func eventOf(raw mstEvent) Event {
	out := Event{
		Time: timeOf(raw.Time), Kind: eventKinds[raw.Kind], Path: eventPaths[raw.Path],
		Protocol: Protocol(raw.T.Proto),
		From:     endOf(raw.T.Saddr, raw.T.Sport), To: endOf(raw.T.Daddr, raw.T.Dport), Via: endOf(raw.To, raw.Port),
		Service: raw.Service, Backend: raw.Backend, Cookie: raw.Cookie, IfIndex: int(raw.Ifindex),
		Sent: raw.Sent, Received: raw.Received,
	}
	if raw.Reason != 0 {
		out.Reason, out.Meaning = reasonText(raw.Reason)
		out.Direction = directions[raw.Dir]
	}
	return out
}

func endOf(a mstAddr, port uint16) netip.AddrPort {
	if ip := a.ip(); ip.IsValid() {
		return netip.AddrPortFrom(ip, be(port))
	}
	return netip.AddrPort{}
}

// LostEvents counts the events that no reader got since the maps were made: what was beyond some 7,600 a second and
// CPU, or found the ring buffer full. Nothing is counted while nobody watches.
func (d *Datapath) LostEvents() (uint64, error) {
	var key uint32
	var perCPU []mstEventRate
	if err := d.maps["event_rate"].Lookup(&key, &perCPU); err != nil {
		return 0, fmt.Errorf("read mst_event_rate: %w", err)
	}
	var lost uint64
	for _, r := range perCPU {
		lost += r.Lost
	}
	return lost, nil
}

// Watched tells whether the programs tell of events now.
func (d *Datapath) Watched() (bool, error) {
	cfg, err := d.config()
	if err != nil {
		return false, err
	}
	now, err := monotonic()
	return cfg.Events > now, err
}
