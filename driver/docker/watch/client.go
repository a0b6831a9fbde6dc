// SPDX-License-Identifier: Apache-2.0

package watch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/moby/moby/api/types/events"
)

// maxAPIMinor is the newest API (1.56, engine 29) whose answers these types were read from.
const maxAPIMinor = 56

var errNotFound = errors.New("not found")

// Client asks the engine's API for the few things the watcher needs. It works with API 1.41 (engine
// 20.10) and later.
//
// It is not moby's own client because that decodes every address strictly and whole lists at once:
// engine 20.10 writes an IPv6 gateway that IPAM chose with its length (fd00::1/64), on which moby's
// NetworkList fails for all networks of the host. Here only the fields in use are read.
type Client struct {
	socket string
	http   *http.Client
	prefix atomic.Pointer[string] // "/v1.41", set by negotiate
}

// NewClient makes a client for the engine at the Unix socket; nothing is sent yet.
func NewClient(socket string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		if stopped(socket) {
			return nil, errStopped
		}
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}
	c := &Client{socket: socket, http: &http.Client{Transport: &http.Transport{
		DialContext:     dial,
		IdleConnTimeout: 30 * time.Second,
	}}}
	c.prefix.Store(new(string))
	return c
}

type network struct {
	ID     string `json:"Id"`
	Name   string
	Driver string
	IPAM   struct {
		Driver string
		Config []struct{ Subnet string }
	}
}

type summary struct {
	ID              string   `json:"Id"`
	Names           []string // each with a slash in front
	Labels          map[string]string
	State           string // running, paused, created, exited, …
	NetworkSettings struct {
		Networks map[string]*attachment // without aliases
	}
}

type container struct {
	ID    string `json:"Id"`
	Name  string // with a slash in front
	State struct {
		Running    bool
		Paused     bool
		Restarting bool
		Dead       bool
		Pid        int
		StartedAt  time.Time // 0001-01-01 if never
		Error      string    // why its last start failed
		Health     *struct{ Status string }
	}
	HostConfig struct{ RestartPolicy struct{ Name string } }
	Config     struct {
		Hostname    string
		Labels      map[string]string
		StopSignal  string
		StopTimeout *int // seconds
	}
	NetworkSettings struct {
		Networks map[string]*attachment
	}
}

type attachment struct {
	NetworkID  string
	EndpointID string // empty while the container is not running
	Aliases    []string
	GwPriority int // engine 28 and later
}

// negotiate takes the engine's API version, or ours if that is older. It is done at every connect,
// because the engine may have been up- or downgraded.
func (c *Client) negotiate(ctx context.Context) error {
	resp, err := c.do(ctx, "/_ping", nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<10)) // lets the connection be used again
	version := resp.Header.Get("Api-Version")
	major, minor, ok := strings.Cut(version, ".")
	n, err := strconv.Atoi(minor)
	if !ok || err != nil || major != "1" || n < 0 {
		return fmt.Errorf("the engine at %s has API version %q: want 1.x", c.socket, version)
	}
	prefix := fmt.Sprintf("/v1.%d", min(n, maxAPIMinor))
	c.prefix.Store(&prefix)
	return nil
}

func (c *Client) networks(ctx context.Context) ([]network, error) {
	var out []network
	err := c.get(ctx, "/networks", nil, &out)
	if err == nil && out == nil { // an engine without a network has none of ours: all would be removed
		err = errors.New("list the networks: the engine answered without a list")
	}
	return out, err
}

// list lists all containers. The engine answers it without a container's lock.
func (c *Client) list(ctx context.Context) ([]summary, error) {
	var out []summary
	return out, c.get(ctx, "/containers/json", url.Values{"all": {"1"}}, &out)
}

// inspect waits in the engine for the container's lock, which is held while it starts.
func (c *Client) inspect(ctx context.Context, id string) (container, error) {
	var out container
	err := c.get(ctx, "/containers/"+url.PathEscape(id)+"/json", nil, &out)
	if err == nil && out.ID != id {
		err = fmt.Errorf("inspect container %s: the engine answered about %q", id, out.ID)
	}
	return out, err
}

// The wanted actions. Naming them keeps the exec_* of health checks out of the stream; one of them,
// health_status, makes the engine compare prefixes, which none of the others suffers from.
var actions = []string{
	"start", "restart", "kill", "die", "stop", "oom", "pause", "unpause", "rename", "destroy",
	"health_status", "create", "connect", "disconnect", "remove",
}

// events streams what happens from since on, which must lie before the call: the engine sends the
// headers before it subscribes.
func (c *Client) events(ctx context.Context, since time.Time) (*stream, error) {
	wanted := make(map[string]bool, len(actions))
	for _, a := range actions {
		wanted[a] = true
	}
	filters, err := json.Marshal(map[string]map[string]bool{
		"type":  {"container": true, "network": true},
		"event": wanted,
	})
	if err != nil {
		return nil, err
	}
	resp, err := c.do(ctx, *c.prefix.Load()+"/events", url.Values{
		"since":   {fmt.Sprintf("%d.%09d", since.Unix(), since.Nanosecond())},
		"filters": {string(filters)},
	})
	if err != nil {
		return nil, err
	}
	return &stream{body: resp.Body, dec: json.NewDecoder(resp.Body)}, nil
}

type stream struct {
	body io.ReadCloser
	dec  *json.Decoder
}

func (s *stream) next() (events.Message, error) {
	var m events.Message
	err := s.dec.Decode(&m)
	return m, err
}

func (s *stream) close() { s.body.Close() }

func (c *Client) get(ctx context.Context, path string, query url.Values, v any) error {
	resp, err := c.do(ctx, *c.prefix.Load()+path, query)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(v); err != nil {
		return fmt.Errorf("read the engine's answer to %s: %w", path, err)
	}
	return nil
}

func (c *Client) do(ctx context.Context, path string, query url.Values) (*http.Response, error) {
	return c.send(ctx, http.MethodGet, path, query)
}

// send makes a request that the engine does as asked, or an error.
func (c *Client) send(ctx context.Context, method, path string, query url.Values) (*http.Response, error) {
	u := url.URL{Scheme: "http", Host: "docker", Path: path, RawQuery: query.Encode()}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), nil)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask the engine at %s: %w", c.socket, err)
	}
	switch resp.StatusCode {
	case http.StatusOK, http.StatusNoContent, http.StatusNotModified: // it is so already
		return resp, nil
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
	err = fmt.Errorf("the engine answered %s to %s: %s", resp.Status, path, strings.TrimSpace(string(text)))
	if resp.StatusCode == http.StatusNotFound {
		err = fmt.Errorf("%w: %w", errNotFound, err)
	}
	return nil, err
}
