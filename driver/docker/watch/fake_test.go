// SPDX-License-Identifier: Apache-2.0

package watch

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/require"

	"github.com/mustang-net/mustang/service"
)

// past is an event that was sent at a time, in nanoseconds.
type past struct {
	at    int64
	event object
}

// object is JSON as an engine writes it.
type object = map[string]any

// fakeEngine serves the API of one engine generation on a Unix socket, with the lists and events that
// a test gives it.
type fakeEngine struct {
	api    string // "1.41" or "1.56"
	server *httptest.Server
	socket string

	mu          sync.Mutex
	networks    []object
	containers  map[string]object // running, by id; the answer to inspect
	stopped     map[string]object
	attached    map[string]map[string]string // endpoints by network and container
	held        map[string]chan struct{}     // inspect waits for it, as for the container's lock
	inspects    map[string]int
	concurrent  int
	most        int // inspects that ran at once
	streams     map[chan object]bool
	history     []past // replayed by since
	onList      func() // runs before the list of containers is answered
	started     []string
	unreachable bool // accepts and answers nothing, as at boot
}

func newFakeEngine(t *testing.T, api string) *fakeEngine {
	e := &fakeEngine{
		api:        api,
		networks:   []object{},
		containers: make(map[string]object),
		stopped:    make(map[string]object),
		held:       make(map[string]chan struct{}),
		inspects:   make(map[string]int),
		streams:    make(map[chan object]bool),
	}
	dir, err := os.MkdirTemp("", "mst") // t.TempDir may be too long for a socket's name
	require.NoError(t, err)
	e.socket = filepath.Join(dir, "docker.sock")
	l, err := net.Listen("unix", e.socket)
	require.NoError(t, err)
	e.server = httptest.NewUnstartedServer(http.HandlerFunc(e.serve))
	e.server.Listener.Close()
	e.server.Listener = l
	e.server.Start()
	t.Cleanup(func() {
		e.server.CloseClientConnections()
		e.server.Close()
		os.RemoveAll(dir)
	})
	return e
}

func (e *fakeEngine) serve(w http.ResponseWriter, r *http.Request) {
	e.mu.Lock()
	hang := e.unreachable
	e.mu.Unlock()
	if hang {
		<-r.Context().Done()
		return
	}
	if r.URL.Path == "/_ping" {
		w.Header().Set("Api-Version", e.api)
		io.WriteString(w, "OK")
		return
	}
	path, ok := strings.CutPrefix(r.URL.Path, "/v"+e.api)
	if !ok {
		http.Error(w, `{"message":"client version is too new"}`, http.StatusBadRequest)
		return
	}
	switch {
	case path == "/events":
		e.serveEvents(w, r)
	case path == "/networks":
		e.mu.Lock()
		defer e.mu.Unlock()
		json.NewEncoder(w).Encode(e.networks)
	case strings.HasPrefix(path, "/networks/"):
		e.serveNetwork(w, strings.TrimPrefix(path, "/networks/"))
	case path == "/containers/json":
		e.serveList(w)
	case r.Method == http.MethodPost:
		e.mu.Lock()
		defer e.mu.Unlock()
		e.started = append(e.started, strings.TrimSuffix(strings.TrimPrefix(path, "/containers/"), "/start"))
		w.WriteHeader(http.StatusNoContent)
	default:
		e.serveInspect(w, r, strings.TrimSuffix(strings.TrimPrefix(path, "/containers/"), "/json"))
	}
}

func (e *fakeEngine) serveNetwork(w http.ResponseWriter, id string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	containers := object{}
	for container, endpoint := range e.attached[id] {
		containers[container] = object{"Name": container, "EndpointID": endpoint, "IPv4Address": "10.0.0.9/24"}
	}
	json.NewEncoder(w).Encode(object{"Id": id, "Containers": containers})
}

func (e *fakeEngine) serveList(w http.ResponseWriter) {
	e.mu.Lock()
	list := []object{}
	for id, c := range e.containers {
		list = append(list, object{"Id": id, "Names": []any{c["Name"]}, "State": "running", "NetworkSettings": c["NetworkSettings"], "Ports": []object{{"IP": "0.0.0.0", "PrivatePort": 80}}})
	}
	for id, c := range e.stopped {
		list = append(list, object{"Id": id, "Names": []any{c["Name"]}, "State": c["State"].(object)["Status"], "NetworkSettings": c["NetworkSettings"],
			"Labels": c["Config"].(object)["Labels"]})
	}
	race := e.onList
	e.onList = nil
	e.mu.Unlock()
	if race != nil {
		race()
	}
	json.NewEncoder(w).Encode(list)
}

func (e *fakeEngine) serveInspect(w http.ResponseWriter, r *http.Request, id string) {
	e.mu.Lock()
	e.inspects[id]++
	e.concurrent++
	e.most = max(e.most, e.concurrent)
	held := e.held[id]
	e.mu.Unlock()
	if held != nil {
		select {
		case <-held:
		case <-r.Context().Done():
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.concurrent--
	c := e.containers[id]
	if c == nil {
		c = e.stopped[id]
	}
	if c == nil {
		http.Error(w, `{"message":"No such container: `+id+`"}`, http.StatusNotFound)
		return
	}
	json.NewEncoder(w).Encode(c)
}

func (e *fakeEngine) serveEvents(w http.ResponseWriter, r *http.Request) {
	w.WriteHeader(http.StatusOK)
	w.(http.Flusher).Flush()
	sec, nano, _ := strings.Cut(r.URL.Query().Get("since"), ".")
	since, err := strconv.ParseInt(sec+nano, 10, 64)
	if err != nil {
		panic(err)
	}
	ch := make(chan object, 4096)
	e.mu.Lock()
	for _, p := range e.history {
		if p.at >= since {
			ch <- p.event
		}
	}
	e.streams[ch] = true
	e.mu.Unlock()
	defer func() {
		e.mu.Lock()
		delete(e.streams, ch)
		e.mu.Unlock()
	}()
	for {
		select {
		case <-r.Context().Done():
			return
		case m, ok := <-ch:
			if !ok {
				panic(http.ErrAbortHandler) // the engine dies
			}
			json.NewEncoder(w).Encode(m)
			w.(http.Flusher).Flush()
		}
	}
}

// emit sends an event of a container, with attributes as key and value pairs.
func (e *fakeEngine) emit(id, action string, attrs ...string) {
	e.send(object{"Type": "container", "Action": action, "status": action, "id": id,
		"Actor": object{"ID": id, "Attributes": pairs(attrs)}, "scope": "local", "timeNano": time.Now().UnixNano()})
}

func (e *fakeEngine) emitNetwork(id, action string, attrs ...string) {
	e.send(object{"Type": "network", "Action": action, "Actor": object{"ID": id, "Attributes": pairs(attrs)}})
}

func pairs(attrs []string) map[string]string {
	out := make(map[string]string)
	for i := 0; i < len(attrs); i += 2 {
		out[attrs[i]] = attrs[i+1]
	}
	return out
}

func (e *fakeEngine) send(m object) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.history = append(e.history, past{time.Now().UnixNano(), m})
	for ch := range e.streams {
		ch <- m
	}
}

// cut ends all event streams.
func (e *fakeEngine) cut() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for ch := range e.streams {
		close(ch)
		delete(e.streams, ch)
	}
}

func (e *fakeEngine) run(c object) {
	e.mu.Lock()
	defer e.mu.Unlock()
	id := c["Id"].(string)
	delete(e.stopped, id)
	e.containers[id] = c
}

// stop keeps the container as exited, with its networks but without endpoints.
func (e *fakeEngine) stop(id string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	c := e.containers[id]
	delete(e.containers, id)
	c["State"] = object{"Status": "exited", "Running": false, "Pid": 0}
	e.stopped[id] = c
}

func (e *fakeEngine) remove(id string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.containers, id)
	delete(e.stopped, id)
}

// create makes a container that has never run: engines before 25 do not give it its networks' ids.
func (e *fakeEngine) create(c object) {
	e.mu.Lock()
	defer e.mu.Unlock()
	c["State"] = object{"Status": "created", "Running": false, "Pid": 0}
	for _, a := range c["NetworkSettings"].(object)["Networks"].(object) {
		a.(object)["EndpointID"] = ""
		if e.api == "1.41" {
			a.(object)["NetworkID"] = ""
		}
	}
	e.stopped[c["Id"].(string)] = c
}

// hold takes the container's lock and gives what lets it go.
func (e *fakeEngine) hold(id string) (release func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	ch := make(chan struct{})
	e.held[id] = ch
	return sync.OnceFunc(func() {
		e.mu.Lock()
		delete(e.held, id)
		e.mu.Unlock()
		close(ch)
	})
}

// fakeServices is an in-memory Containers and Networks.
type fakeServices struct {
	mu         sync.Mutex
	containers map[string]service.Container
	names      map[string]string
	phases     map[string][]service.Phase // as they were told, repeats left out
	gone       []string
	removed    []string
	expected   map[string]service.Container // as last told, by endpoint
	joining    map[string][]string
	published  []string // names of those with ports
	unread     bool     // and not all of them
	syncs      int
	atSync     int // containers known at the first Sync
	known      map[string]map[string]bool
	subnets    map[netip.Prefix]bool
}

func newFakeServices() *fakeServices {
	return &fakeServices{
		containers: make(map[string]service.Container),
		names:      make(map[string]string),
		phases:     make(map[string][]service.Phase),
	}
}

func (f *fakeServices) PutContainer(c service.Container) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.containers[c.ID] = c
	if p := f.phases[c.ID]; len(p) == 0 || p[len(p)-1] != c.Phase {
		f.phases[c.ID] = append(p, c.Phase)
	}
}

func (f *fakeServices) RemoveContainer(id string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.containers, id)
	f.removed = append(f.removed, id)
}

func (f *fakeServices) Gone(id string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.gone = append(f.gone, id)
}

func (f *fakeServices) Expect(facts map[string]service.Container, networks map[string][]string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.expected, f.joining = facts, networks
}

func (f *fakeServices) PublishedNames(string) ([]string, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.published, !f.unread
}

func (f *fakeServices) Sync() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.syncs++; f.syncs == 1 {
		f.atSync = len(f.containers)
	}
	return nil
}

func (f *fakeServices) Collect(known map[string]map[string]bool, subnets map[netip.Prefix]bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.known, f.subnets = known, subnets
	return nil
}

func (f *fakeServices) SetNetworkName(id, name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.names[id] = name
}

func (f *fakeServices) phase(id string) service.Phase {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.containers[id].Phase
}

func (f *fakeServices) name(id string) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.names[id]
}

func (f *fakeServices) synced() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.syncs
}

// follow starts a watcher and stops it at the end of the test.
func follow(t *testing.T, e *fakeEngine, change ...func(*Watcher)) *fakeServices {
	f := newFakeServices()
	log := logrus.New()
	log.SetOutput(io.Discard)
	w := New(Options{Client: NewClient(e.socket), Containers: f, Networks: f, Log: log})
	w.timing.retryMin, w.timing.retryMax = time.Millisecond, 20*time.Millisecond
	for _, c := range change {
		c(w)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		require.ErrorIs(t, <-done, context.Canceled)
	})
	return f
}

func eventually(t *testing.T, cond func() bool, msg ...any) {
	t.Helper()
	require.Eventually(t, cond, 10*time.Second, time.Millisecond, msg...)
}
