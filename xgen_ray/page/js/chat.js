// One conversation with a model, streamed from the OpenAI API as any client would.

import { headers, openai, refusal } from "./api.js";
import { sseEvents } from "./sse.js";
import { change, state } from "./state.js";
import { t } from "./text.js";

export const newChat = (model = "") => ({
  model,
  system: "",
  temperature: "0.7",
  length: "512",
  draft: "",
  messages: [], // {role, content, figures, error}
  running: null,
});

export function chatState() {
  if (!state.chat?.messages) state.chat = { ...newChat(), ...(state.chat ?? {}) };
  return state.chat;
}

// The body of the request that would be sent now, as the snippets show it.
export function bodyOf(chat, messages) {
  const system = chat.system.trim() ? [{ role: "system", content: chat.system.trim() }] : [];
  const body = {
    model: chat.model,
    messages: [...system, ...messages.map(({ role, content }) => ({ role, content }))],
    stream: true,
    stream_options: { include_usage: true },
  };
  const temperature = Number(chat.temperature);
  const length = Number(chat.length);
  if (chat.temperature !== "" && !Number.isNaN(temperature)) body.temperature = temperature;
  if (chat.length !== "" && Number.isInteger(length) && length > 0) body.max_tokens = length;
  return body;
}

export async function say() {
  const chat = chatState();
  const text = chat.draft.trim();
  if (!text || chat.running || !chat.model) return;
  const answer = { role: "assistant", content: "", figures: null, error: null };
  const running = new AbortController();
  const asked = [...told(chat), { role: "user", content: text }];
  change(() => Object.assign(chat, { messages: [...chat.messages, asked.at(-1), answer], draft: "", running }));
  try {
    await stream(bodyOf(chat, asked), answer, running.signal);
  } catch (error) {
    if (!running.signal.aborted) answer.error = error.message;
  }
  if (running.signal.aborted) answer.stopped = true;
  change(() => (chat.running = null));
}

// An answer that failed was never said.
const told = (chat) =>
  chat.messages.filter((message, index) => !message.error && !chat.messages[index + 1]?.error);

export const stop = () => state.chat?.running?.abort();

async function stream(body, answer, signal) {
  const began = performance.now();
  const reply = await fetch(`${openai()}/chat/completions`, {
    method: "POST",
    headers: headers({ "content-type": "application/json" }),
    body: JSON.stringify(body),
    signal,
  });
  if (!reply.ok) throw await refusal(reply);
  const figures = { first: null, tokens: 0, seconds: 0, rate: null };
  let began_answering = 0;
  for await (const event of sseEvents(reply.body)) {
    if (event.data === "[DONE]") break;
    const chunk = JSON.parse(event.data);
    if (chunk.error) throw new Error(chunk.error.message);
    const now = performance.now();
    const delta = chunk.choices?.[0]?.delta ?? {};
    const words = delta.content ?? delta.reasoning_content ?? "";
    if (words) {
      if (figures.first === null) {
        figures.first = (now - began) / 1000;
        began_answering = now;
      }
      figures.tokens += 1;
    }
    if (chunk.usage) figures.tokens = chunk.usage.completion_tokens;
    figures.seconds = (now - began_answering) / 1000;
    // The first token is there before the clock of the others starts.
    if (began_answering && figures.seconds > 0) figures.rate = (figures.tokens - 1) / figures.seconds;
    change(() => {
      answer.content += words;
      answer.figures = { ...figures };
      answer.finish = chunk.choices?.[0]?.finish_reason ?? answer.finish;
    });
  }
  if (!answer.content && !signal.aborted) throw new Error(t("chat.silent"));
}

const shell = (text) => text.replaceAll("'", `'\\''`);

export function curl(body, withKey) {
  const auth = withKey ? ` \\\n  -H "Authorization: Bearer $XGEN_RAY_API_KEY"` : "";
  return `curl ${openai()}/chat/completions -N \\\n  -H 'Content-Type: application/json'${auth} \\\n  -d '${shell(JSON.stringify(body, null, 2))}'`;
}

export function python(body, withKey) {
  const key = withKey ? `os.environ["XGEN_RAY_API_KEY"]` : `"unused"`;
  const { stream_options: _, ...told } = body;
  const given = Object.entries(told)
    .map(([name, value]) => `    ${name}=${literal(value)},`)
    .join("\n");
  return `${withKey ? "import os\n\n" : ""}from openai import OpenAI

client = OpenAI(base_url="${openai()}", api_key=${key})
stream = client.chat.completions.create(
${given}
)
for chunk in stream:
    if chunk.choices:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
`;
}

// JSON is Python, but for three words.
const literal = (value) =>
  typeof value === "boolean" ? (value ? "True" : "False") : JSON.stringify(value, null, 4).replaceAll("\n", "\n    ");
