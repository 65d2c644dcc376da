// Runs cases by their names. Prints what fails, then how many of how many passed.
export async function run(cases) {
  let passed = 0;
  for (const [title, work] of Object.entries(cases)) {
    try {
      if (!(await work())) throw new Error("an empty answer");
      passed += 1;
    } catch (error) {
      console.log(`${title}: ${error}`);
    }
  }
  console.log(`${passed} ${Object.keys(cases).length}`);
}
