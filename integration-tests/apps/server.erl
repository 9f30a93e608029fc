%% A counter over HTTP in Erlang: a process counts, another ticks, each connection has one of its own.
%% GET /      {"count", "client", "boot", "pid", "mem_ok", "ticks", "processes"}
%% MEM_MB     megabytes to hold (16)
-module(server).
-export([start/0]).

start() ->
    Memory = rand:bytes(env("MEM_MB", 16) bsl 20),
    Digest = erlang:crc32(Memory),
    Boot = integer_to_list(rand:uniform(1 bsl 64), 16),
    Counter = spawn_link(fun() -> counter(0) end),
    Ticker = spawn_link(fun() -> tick(0) end),
    Port = env("PORT", 8080),
    {ok, Listener} = gen_tcp:listen(Port, [
        inet6, {ipv6_v6only, false}, binary, {packet, http_bin}, {active, false},
        {reuseaddr, true}, {backlog, 1024}, {nodelay, true}
    ]),
    io:format("listening on ~b~n", [Port]),
    Facts = fun() ->
        Number = ask(Counter),
        [
            {count, Number}, {boot, Boot}, {pid, os:getpid()},
            {mem_ok, erlang:crc32(Memory) =:= Digest}, {ticks, ask(Ticker)},
            {processes, erlang:system_info(process_count)}
        ]
    end,
    accept(Listener, Facts).

accept(Listener, Facts) ->
    {ok, Socket} = gen_tcp:accept(Listener),
    Serving = spawn(fun() -> receive go -> serve(Socket, Facts) end end),
    ok = gen_tcp:controlling_process(Socket, Serving),
    Serving ! go,
    accept(Listener, Facts).

serve(Socket, Facts) ->
    case request(Socket, keep) of
        closed ->
            gen_tcp:close(Socket);
        After ->
            {ok, {Address, Port}} = inet:peername(Socket),
            Client = client(Address) ++ ":" ++ integer_to_list(Port),
            Answer = [{client, Client} | Facts()],
            {count, Number} = lists:keyfind(count, 1, Answer),
            io:format("request ~b ~s~n", [Number, Client]),
            Body = ["{", lists:join(", ", [field(Field) || Field <- Answer]), "}\n"],
            ok = gen_tcp:send(Socket, [
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: ",
                integer_to_list(iolist_size(Body)), "\r\n\r\n", Body
            ]),
            case After of
                keep -> serve(Socket, Facts);
                close -> gen_tcp:close(Socket)
            end
    end.

%% Reads one request to the end of its headers: what becomes of the connection after the answer.
request(Socket, After) ->
    case gen_tcp:recv(Socket, 0) of
        {ok, http_eoh} -> After;
        {ok, {http_header, _, 'Connection', _, <<"close">>}} -> request(Socket, close);
        {ok, _} -> request(Socket, After);
        {error, _} -> closed
    end.

field({Name, Value}) when is_list(Value) -> io_lib:format("\"~s\": \"~s\"", [Name, Value]);
field({Name, Value}) -> io_lib:format("\"~s\": ~w", [Name, Value]).

%% IPv4 in its own form, IPv6 in brackets.
client({0, 0, 0, 0, 0, 16#ffff, High, Low}) ->
    inet:ntoa({High bsr 8, High band 255, Low bsr 8, Low band 255});
client(Address) ->
    "[" ++ inet:ntoa(Address) ++ "]".

counter(Count) ->
    receive {From, ask} -> From ! {self(), Count + 1}, counter(Count + 1) end.

ticker(Ticks) ->
    receive
        {From, ask} -> From ! {self(), Ticks}, ticker(Ticks);
        tick -> tick(Ticks + 1)
    end.

%% Comes however often it is asked meanwhile: an `after` would begin anew each time.
tick(Ticks) ->
    erlang:send_after(50, self(), tick),
    ticker(Ticks).

ask(Process) ->
    Process ! {self(), ask},
    receive {Process, Answer} -> Answer end.

env(Name, Default) ->
    case os:getenv(Name) of
        false -> Default;
        Value -> list_to_integer(Value)
    end.
