// A reviewer in a real browser. Told what to do next by lines on standard input, tells what it saw by lines of JSON.
// Arguments: share URL, folder for screenshots. Not here: who revokes the link.
import { createRequire } from 'node:module';
import { createInterface } from 'node:readline';

const require = createRequire(process.env.ENVFORGE_TEST_BROWSER_DIR + '/');
const { chromium } = require('playwright-core');
const [shareUrl, shots] = process.argv.slice(2);

const say = (event, more = {}) => console.log(JSON.stringify({ event, ...more }));
const told = createInterface({ input: process.stdin })[Symbol.asyncIterator]();

const browser = await chromium.launch({
  executablePath: process.env.ENVFORGE_TEST_CHROMIUM,
  args: ['--no-sandbox', '--disable-background-networking', '--disable-component-update', '--disable-sync'],
});
try {
  const context = await browser.newContext({ viewport: { width: 1200, height: 800 } });
  const page = await context.newPage();
  const failures = [];
  page.on('pageerror', (error) => failures.push(String(error)));

  await page.goto(shareUrl);
  const share = await page.innerText('main');
  await page.screenshot({ path: `${shots}/1-share.png` });
  const before = await context.cookies();
  say('share', { text: share, cookies: before.length });

  await page.click('form button');
  // The waking page goes on to the app by itself, perhaps while it is being looked at.
  await page.screenshot({ path: `${shots}/2-waking.png` }).catch(() => {});
  say('opened', { url: page.url() });

  await page.waitForSelector('#live[data-state="open"]', { timeout: 60_000 });
  await page.waitForFunction(() => document.querySelector('#figure-open').textContent !== '–');
  await page.fill('#words', 'across the gateway');
  await page.click('#echo button');
  await page.waitForSelector('#echoes li');
  await page.screenshot({ path: `${shots}/3-app.png` });
  const seen = await page.evaluate(async () => ({
    orders: (await (await fetch('/api/orders')).json()).orders?.length ?? -1,
    style: (await fetch('/assets/board.css')).status,
    echo: document.querySelector('#echoes').innerText,
    cookie: document.cookie,
    socket: document.querySelector('#live').dataset.state,
  }));
  say('app', { ...seen, url: page.url(), failures });

  await told.next(); // the link is being revoked now
  const revoked = Date.now();
  await page.waitForFunction(() => document.querySelector('#live')?.dataset.state !== 'open', null, { timeout: 5_000 });
  const socketMs = Date.now() - revoked;
  const api = await page.evaluate(async () => {
    const answer = await fetch('/api/orders');
    return { status: answer.status, type: answer.headers.get('content-type'), body: await answer.json(), redirected: answer.redirected };
  });
  await page.reload();
  await page.screenshot({ path: `${shots}/4-ended.png` });
  say('revoked', { socketMs, api, text: await page.innerText('main') });

  const again = await context.newPage();
  await again.goto(shareUrl);
  say('share-again', { text: await again.innerText('main'), buttons: await again.locator('form button').count() });
} finally {
  await browser.close();
}
